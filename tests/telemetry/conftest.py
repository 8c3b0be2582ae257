"""Fixtures: a server with an ops port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server_process import ServerProcess
from tests.telemetry.ops import ON


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Run a server with an ops port for all tests of a module."""
    server = ServerProcess(tmp_path_factory.mktemp("watched") / "sagastore.db", env=ON)
    try:
        yield server.start()
    finally:
        server.close()
