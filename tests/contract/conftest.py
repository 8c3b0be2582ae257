"""Every test of this folder runs over every backend, and does not know which it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagastore_server.storage.base import StorageBackend
from tests.support.backends import KINDS, Place, opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a backend is known not to do, with its reason; passing it fails too."""
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        kind = KINDS.get(str(item.callspec.params.get("kind")))
        reason = kind and kind.gaps.get(item.originalname)
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Name a kind of backend."""
    name: str = request.param
    return name


@pytest.fixture
async def place(kind: str, tmp_path: Path) -> AsyncIterator[Place]:
    """Prepare an empty store, where backends are made one after the other."""
    async with KINDS[kind].place(tmp_path) as make:
        yield Place(KINDS[kind], make)


@pytest.fixture
async def backend(place: Place) -> AsyncIterator[StorageBackend]:
    """Open a backend on an empty store."""
    async with opened(place.make) as backend:
        yield backend
