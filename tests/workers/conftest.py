"""Fixtures of the worker tests: services of several processes on an empty database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.postgres import fresh_schema
from tests.telemetry.ops import ON
from tests.workers.service import Service

ServiceFactory = Callable[..., Service]


@pytest.fixture
async def dsn() -> AsyncIterator[str]:
    """Return a connection string of an empty schema."""
    async with fresh_schema() as dsn:
        yield dsn


@pytest.fixture
def service(dsn: str, tmp_path: Path) -> Iterator[ServiceFactory]:
    """Make services of two workers, not started yet: ``service(*options, env=...)``."""
    with ExitStack() as stack:

        def make(*options: str, env: dict[str, str] | None = None) -> Service:
            made = Service(
                tmp_path / "unused.db",
                *("--workers", "2", *options),
                env=ON | (env or {}),
                postgres=dsn,
            )
            stack.callback(made.close)
            return made

        yield make
