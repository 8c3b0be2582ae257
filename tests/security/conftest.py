"""Fixtures: certificates, and a server with access control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.pki import CLIENT, Pki, entry, environment, write_access
from tests.support.other_user import folders
from tests.support.server_process import ServerProcess

ROLES = ("reader", "writer", "admin")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def mutual(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Run a server with mutual TLS, three known certificates and a token for each role."""
    folder = tmp_path_factory.mktemp("mutual")
    access = write_access(
        folder / "access.toml",
        *(entry("token", f"the-{role}", role, token=f"{role}-token") for role in ROLES),
        entry("token", "old", "admin", token="old-token", more="expires = 2020-01-01T00:00:00Z"),
        entry("certificate", CLIENT, "reader"),
        entry("certificate", "The Writer", "writer"),
        entry("certificate", "10.0.0.7", "admin"),
    )
    settings = environment(pki.server(), pki.ca, access) | {"SAGASTORE_REFLECTION": "false"}
    server = ServerProcess(folder / "saga.db", env=settings)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def both() -> Iterator[tuple[Path, Path]]:
    with folders() as made:
        yield made


@pytest.fixture
def theirs(both: tuple[Path, Path]) -> Path:
    """Return a folder of another user, beside ``own``."""
    return both[0]


@pytest.fixture
def own(both: tuple[Path, Path]) -> Path:
    """Return a folder of root that only root can read."""
    return both[1]
