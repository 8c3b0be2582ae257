"""Runs every test of this folder over every backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagastore_server.storage.base import StorageBackend
from tests.support.backends import KINDS, Place, opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark known gaps of a backend as strict xfail, with the reason."""
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        kind = KINDS.get(str(item.callspec.params.get("kind")))
        reason = kind and kind.gaps.get(item.originalname)
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Name of a kind of backend."""
    name: str = request.param
    return name


@pytest.fixture
async def place(kind: str, tmp_path: Path) -> AsyncIterator[Place]:
    """Prepare an empty store on which backends can be created one after the other."""
    async with KINDS[kind].place(tmp_path) as make:
        yield Place(KINDS[kind], make)


@pytest.fixture
async def backend(place: Place) -> AsyncIterator[StorageBackend]:
    """Open a backend on an empty store."""
    async with opened(place.make) as backend:
        yield backend
