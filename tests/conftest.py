"""Fixtures for all tests: real servers, in processes of their own, always cleaned up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

import tests.support.strategies  # noqa: F401 - selects the profile of Hypothesis
from sagastore.v1 import migration_pb2_grpc, storage_pb2_grpc
from tests.support.server_process import ServerProcess, serving

_OPTIONAL = {
    "go": "builds a program in Go",
    "history": "builds an earlier version from the history of the repository",
}
"""Marks of tests that are not part of every run."""

ServerFactory = Callable[..., ServerProcess]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks of these tests known, and Ctrl-C heard by what they start.

    A shell's background jobs begin with SIGINT ignored, and hand that on.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, purpose in _OPTIONAL.items():
        config.addinivalue_line("markers", f"{name}: {purpose}; only where -m names it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not part of every run."""
    for name in _OPTIONAL:
        if name in str(config.option.markexpr):
            continue
        left_out = [item for item in items if item.get_closest_marker(name)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerFactory]:
    """Make servers, not started yet: ``server_process(*options, sqlite=..., env=...)``."""
    with ExitStack() as stack:

        def make(
            *options: str, sqlite: Path | None = None, env: dict[str, str] | None = None
        ) -> ServerProcess:
            server = ServerProcess(sqlite or tmp_path / "sagastore.db", *options, env=env)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def running_server(server_process: ServerFactory) -> ServerProcess:
    """Run a server on an empty file, for one test."""
    return server_process().start()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Run one server for all tests that do not mind each other's messages."""
    with serving(tmp_path_factory.mktemp("shared") / "sagastore.db") as server:
        yield server


@pytest.fixture(scope="session")
def shared_channel(shared_server: ServerProcess) -> Iterator[grpc.Channel]:
    """Connect to the shared server."""
    with shared_server.channel() as channel:
        yield channel


@pytest.fixture(scope="session")
def storage(shared_channel: grpc.Channel) -> storage_pb2_grpc.StorageServiceStub:
    """Call StorageService of the shared server."""
    return storage_pb2_grpc.StorageServiceStub(shared_channel)


@pytest.fixture(scope="session")
def migration(shared_channel: grpc.Channel) -> migration_pb2_grpc.MigrationServiceStub:
    """Call MigrationService of the shared server."""
    return migration_pb2_grpc.MigrationServiceStub(shared_channel)


@pytest.fixture
def channel(running_server: ServerProcess) -> Iterator[grpc.Channel]:
    """Connect to this test's own server."""
    with running_server.channel() as channel:
        yield channel
