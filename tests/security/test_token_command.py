"""The command ``sagastore-server token``."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sagastore import Client, Message, UnauthenticatedError
from tests.security.pki import environment
from tests.support.server_process import ServerProcess, clean_environment


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sagastore_server", "token", *arguments],
        env=clean_environment(folder) | environment(access=folder / "access.toml"),
        capture_output=True,
        text=True,
        check=False,
    )


def test_token_works_until_it_is_revoked(tmp_path: Path) -> None:
    made = run(tmp_path, "new", "web", "--role", "writer", "--expires-days", "90")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert re.fullmatch(r"saga_[A-Za-z0-9_-]{43}", token)
    path = tmp_path / "access.toml"
    assert token not in made.stderr + path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (listed,) = json.loads(run(tmp_path, "list", "--json").stdout)
    assert (listed["name"], listed["role"], listed["expired"]) == ("web", "writer", False)
    server = ServerProcess(tmp_path / "saga.db", env=environment(access=path))
    try:
        server.start()
        with Client(server.address, token=token) as client:
            client.save(Message("openai", "user", "hello"))
            revoked = run(tmp_path, "revoke", listed["sha256"])
            assert revoked.stdout.startswith("Revoked: web  writer  ")
            server.wait_for_event("access file reloaded")
            with pytest.raises(UnauthenticatedError, match="does not know this token"):
                client.save(Message("openai", "user", "hello"))
    finally:
        server.close()
