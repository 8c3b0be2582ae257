"""`sagastore migrate status` and `quarantine` against a real server."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import Sagastore
from tests.conftest import ServerFactory
from tests.support.legacy_db import PLAIN, legacy_db


def test_status_and_quarantine_show_a_legacy_file(
    server_process: ServerFactory, tmp_path: Path
) -> None:
    rows = [
        PLAIN | {"id": "good"},
        PLAIN | {"id": "when", "timestamp": "yesterday"},
        PLAIN | {"id": "what", "metadata": '{"n": NaN}'},
    ]
    server = server_process(sqlite=legacy_db(tmp_path / "memory.db", rows))
    server.start()
    cli = Sagastore(server.address, tmp_path)

    state = cli.json("migrate", "status")
    assert state["phase"] == "sqlite-only"
    assert state["quarantined"] == 2
    assert state["stores"][0]["messages"] == 1
    assert "2 rows" in cli.ok("migrate", "status")

    lines = cli.ok("--json", "migrate", "quarantine").splitlines()
    found = {row["row"]["id"]: row for row in map(json.loads, lines)}
    assert found.keys() == {"when", "what"}
    assert found["when"]["field"] == "timestamp"
    assert "NaN" in found["what"]["reason"]
    assert found["what"]["row"]["metadata"] == '{"n": NaN}'
    shown = cli.run("migrate", "quarantine", "--limit", "1")
    assert "yesterday" in shown.stdout
    assert "what" not in shown.stdout
    assert "there are more" in shown.stderr


def test_empty_quarantine_is_reported(cli: Sagastore) -> None:
    assert "no rows" in cli.ok("migrate", "quarantine")
    assert cli.ok("migrate", "quarantine", "--json") == ""
