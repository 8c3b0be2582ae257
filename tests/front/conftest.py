"""Fixtures: a server with access rules, and nginx in front of it."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sagastore import TLS, Client, RetryPolicy
from tests.front.nginx import MISSING, Front
from tests.security.pki import CLIENT, Pki, entry, environment, write_access
from tests.support.server_process import ServerProcess

Clients = Callable[..., Client]
TOKEN = "app-token"
OTHER_TOKEN = "other-token"
"""Of another caller: the server gives each half of its streams."""
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    if MISSING:
        pytest.skip(MISSING)
    return Pki(tmp_path_factory.mktemp("front-pki"))


@pytest.fixture(scope="session")
def server(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Run a server with the settings that the configuration of nginx names."""
    folder = tmp_path_factory.mktemp("front-server")
    access = write_access(
        folder / "access.toml",
        entry("token", "app", "admin", token=TOKEN),
        entry("token", "other", "admin", token=OTHER_TOKEN),
        entry("certificate", CLIENT, "writer"),
    )
    settings = environment(pki.server(), pki.ca, access)
    settings |= {"SAGASTORE_MAX_CONNECTIONS": "2000", "SAGASTORE_LOG_CALLS": "true"}
    server = ServerProcess(folder / "saga.db", env=settings)
    try:
        yield server.start()
    finally:
        server.close()


def logged_calls(server: ServerProcess) -> Counter[str]:
    """Return the ids of the calls that the server has logged, with their numbers.

    It logs a call when the call has ended, which can be after its caller has the answer.
    """
    events = list(server.events)
    return Counter(event["call"] for event in events if event.get("event") == "call")


@pytest.fixture
def new_front(pki: Pki, server: ServerProcess, tmp_path: Path) -> Iterator[Callable[..., Front]]:
    """Start fronts: ``new_front(changes)``."""
    with ExitStack() as stack:

        def make(changes: dict[str, str] | None = None) -> Front:
            front = Front(tmp_path / "front", pki, server.address, changes)
            stack.callback(front.close)
            return front.start()

        yield make


@pytest.fixture(scope="module")
def front(
    pki: Pki, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Run the front as it is shipped, for all tests of a module."""
    front = Front(tmp_path_factory.mktemp("front") / "front", pki, server.address)
    try:
        yield front.start()
    finally:
        front.close()


@pytest.fixture
def clients(pki: Pki) -> Iterator[Clients]:
    """Connect clients without retries: ``clients(address, token)``."""
    with ExitStack() as stack:

        def make(address: str, token: str | None = TOKEN, tls: TLS | None = None) -> Client:
            tls = tls or TLS(ca=pki.ca)
            return stack.enter_context(Client(address, tls=tls, token=token, retry=ONCE))

        yield make


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow 4,096 open files, where the limit of the process permits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
