"""Runs every test of this folder over every source or target."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagastore_server.storage.replication import MigrationSource, MigrationTarget
from tests.support.migration_backends import SOURCES, TARGETS, SourcePlace, TargetPlace, opened


@pytest.fixture(params=sorted(SOURCES))
def source_place(request: pytest.FixtureRequest, tmp_path: Path) -> SourcePlace:
    """Prepare the contents of a new source."""
    return SOURCES[request.param](tmp_path)


@pytest.fixture
async def source(source_place: SourcePlace) -> AsyncIterator[MigrationSource]:
    """Open a new source."""
    async with opened(source_place.make()) as source:
        yield source


@pytest.fixture(params=sorted(TARGETS))
async def target_place(request: pytest.FixtureRequest) -> AsyncIterator[TargetPlace]:
    """Prepare the contents of an empty target."""
    async with TARGETS[request.param]() as place:
        yield place


@pytest.fixture
async def target(target_place: TargetPlace) -> AsyncIterator[MigrationTarget]:
    """Open a target that ``LEASE`` holds, in DUAL_WRITE."""
    async with target_place.claimed() as target:
        yield target
