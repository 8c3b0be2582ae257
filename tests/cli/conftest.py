"""Fixtures that run the `sagastore` command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Sagastore, end_all
from tests.cli.scripted_migration import ScriptedMigration, scripted_migration
from tests.support.server_process import ServerProcess


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture
def cli(shared_server: ServerProcess, tmp_path: Path) -> Sagastore:
    """Run the command on the shared server."""
    return Sagastore(shared_server.address, tmp_path)


@pytest.fixture
def own_cli(running_server: ServerProcess, tmp_path: Path) -> Sagastore:
    """Run the command on a server of the test's own."""
    return Sagastore(running_server.address, tmp_path)


@pytest.fixture
def scripted() -> Iterator[ScriptedMigration]:
    """Run a server that says what the test wants said of a migration."""
    with scripted_migration() as script:
        yield script


@pytest.fixture
def scripted_cli(scripted: ScriptedMigration, tmp_path: Path) -> Sagastore:
    """Run the command on the scripted server."""
    return Sagastore(scripted.address, tmp_path)
