"""A whole migration with the command, a real server and PostgreSQL."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.command import Sagastore
from tests.cli.terminal import Terminal
from tests.conftest import ServerFactory
from tests.support.legacy_db import PLAIN, legacy_db
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess

GOOD = 300


@pytest.fixture
async def dsn() -> AsyncIterator[str]:
    """Name an empty place in PostgreSQL."""
    async with fresh_schema() as dsn:
        yield dsn


@pytest.fixture
def server(server_process: ServerFactory, tmp_path: Path, dsn: str) -> ServerProcess:
    """Serve a legacy file, with PostgreSQL beside it."""
    rows = [PLAIN | {"id": f"good-{number:03}"} for number in range(GOOD)]
    rows.append(PLAIN | {"id": "when", "timestamp": "yesterday"})
    file = legacy_db(tmp_path / "memory.db", rows)
    return server_process(sqlite=file, env={"SAGASTORE_POSTGRES": dsn}).start()


@pytest.fixture
def cli(server: ServerProcess, tmp_path: Path) -> Sagastore:
    """Run the command on that server."""
    return Sagastore(server.address, tmp_path)


def _next(cli: Sagastore) -> str:
    """Return the command that status says to type next."""
    *_, last = cli.ok("migrate", "status").splitlines()
    return " ".join(last.split())


def test_migration_runs_from_the_first_phase_to_the_last(
    cli: Sagastore, server: ServerProcess, tmp_path: Path
) -> None:
    assert _next(cli) == "next sagastore migrate to dual-write"
    done = cli.run("migrate", "to", "backfill")
    assert done.returncode == 1
    assert "NOT_THE_NEXT_PHASE" in done.stderr
    assert cli.ok("migrate", "to", "dual-write").startswith("sqlite-only -> dual-write: done")
    cli.ok("save", "--provider", "p", "--role", "r", "--id", "between", "x")
    done = cli.run("migrate", "throttle", "--batch-size", "7")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)

    cli.ok("migrate", "to", "backfill")
    cli.ok("migrate", "watch", "--until-backfill-done")
    documents = cli.lines("migrate", "watch", "--until-backfill-done")
    assert documents[-1]["backfill"]["state"] == "done"
    assert cli.json("migrate", "verify")["mismatch_count"] == 0
    assert _next(cli) == "then sagastore migrate to read-postgres --accept-quarantine"
    done = cli.run("migrate", "to", "read-postgres")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1].startswith("  - QUARANTINE_NOT_ACCEPTED: 1 ")
    assert cli.json("migrate", "status")["phase"] == "backfill"

    accepted = ("read-postgres", "--accept-quarantine")
    text = cli.ok("migrate", "to", *accepted, "--dry-run")
    assert "is possible now" in text
    cli.ok("migrate", "to", *accepted)
    cli.ok("migrate", "to", "backfill")
    cli.ok("migrate", "to", *accepted)
    state = cli.json("migrate", "status")
    assert (state["phase"], state["reads_from"]) == ("read-postgres", "postgresql")

    terminal = Terminal(cli, "migrate", "to", "postgres-only")
    terminal.wait_for("Continue? [y/N]")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert _next(cli) == "next nothing: the migration is complete"
    done = cli.run("migrate", "to", "read-postgres")
    assert "NO_WAY_BACK" in done.stderr
    assert cli.json("get", "between")["content"] == "x"
    _check_receipt(cli, tmp_path)


def _check_receipt(cli: Sagastore, folder: Path) -> None:
    (path,) = folder.glob("*.receipt.json")
    document = cli.json("--target", "127.0.0.1:1", "migrate", "receipt", path)
    assert document["ok"]
    assert document["facts"]["messages"]["rows"] == GOOD + 1
    assert document["facts"]["quarantine"]["rows"] == 1
    archive = Path(document["archive"])
    text = cli.ok("migrate", "receipt", archive)
    assert "FAILED" not in text
    assert text.endswith("The archive matches its receipt.\n")
    terminal = Terminal(cli, "migrate", "receipt", path)
    assert terminal.end() == 0

    archive.chmod(0o600)
    data = bytearray(archive.read_bytes())
    at = data.index(b"good-123")
    data[at : at + 8] = b"evil-123"
    archive.write_bytes(data)
    done = cli.run("migrate", "receipt", path)
    assert done.returncode == 1
    assert "FAILED  sha256" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "checks failed" in done.stderr
    failed = json.loads(cli.run("migrate", "receipt", path, "--json").stdout)
    assert not failed["ok"]
    assert "sha256" in {one["name"] for one in failed["checks"] if not one["ok"]}


def test_watch_survives_a_server_restart(cli: Sagastore, server: ServerProcess) -> None:
    process = cli.start("migrate", "watch", "--until", "dual-write")
    assert process.stdout is not None
    assert process.stdout.readline().split("  ")[1].startswith("sqlite-only")
    server.restart()
    cli.ok("migrate", "to", "dual-write")
    out, err = process.communicate(timeout=200)
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert "dual-write" in out.splitlines()[-1]

    process = cli.start("migrate", "watch", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    server.kill9()
    server.restart()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"SQLite format 3\x00" + bytes(100)), "has no receipt"),
        (lambda path: path.write_text("{}"), "is not a receipt of SagaStore"),
    ],
)
def test_invalid_receipt_is_reported_in_one_line(make: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert callable(make)
    make(path)
    done = Sagastore("127.0.0.1:1", tmp_path).run("migrate", "receipt", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
