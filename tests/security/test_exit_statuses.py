"""Exit statuses of `sagastore` for callers that the server refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import Sagastore
from tests.security.pki import Pki
from tests.support.server_process import ServerProcess


def test_refused_callers_get_their_own_status(tmp_path: Path) -> None:
    access = Pki(tmp_path / "pki").write("access.toml", b"")
    server = ServerProcess(tmp_path / "s.db", "--access", str(access)).start()
    try:
        cli = Sagastore(server.address, tmp_path)
        done = cli.run("ping")
        # Health needs no token; the number of messages does, and is left out.
        assert done.returncode == 0
        for environment in ({}, {"SAGASTORE_TOKEN": "saga_unknown"}):
            done = cli.run("--json", "list", "s", **environment)
            error = json.loads(done.stderr)
            assert (done.returncode, error["code"]) == (5, "UNAUTHENTICATED")
            assert "saga_unknown" not in done.stderr
    finally:
        server.close()
