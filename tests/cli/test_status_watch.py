"""`sagastore migrate watch`: output, conditions and reconnection."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from typing import Any

import pytest

from sagastore.v1 import migration_pb2 as pb
from tests.cli import states
from tests.cli.command import Sagastore
from tests.cli.scripted_migration import ScriptedMigration
from tests.cli.terminal import Terminal
from tests.support.waiting import eventually


class Watching:
    """`migrate watch` in a subprocess whose output is read continuously."""

    def __init__(self, cli: Sagastore, *args: str) -> None:
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] = cli.start("migrate", "watch", *args)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, text: str) -> None:
        eventually(lambda: any(text in line for line in list(self.lines)))

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it complained about."""
        assert self.process.stderr is not None
        stderr = self.process.stderr.read()
        status = self.process.wait(timeout=200)
        self._reader.join(timeout=200)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.stderr.close()
        assert "Traceback" not in stderr
        return status, stderr


def test_watch_prints_a_line_per_change(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.sqlite_only()
    watching = Watching(scripted_cli, "--until", "read-postgres")
    watching.wait_for("sqlite-only")
    scripted.state = states.dual_write()
    watching.wait_for("dual-write, epoch 2")
    scripted.state = states.backfill()
    watching.wait_for("backfill running")
    scripted.state = states.fallback()
    assert watching.end() == (0, "")
    text = [line.partition("  ")[2].rstrip() for line in watching.lines]
    assert text == [
        "sqlite-only, epoch 1; no blockers to dual-write",
        "dual-write, epoch 2; journal 12 rows; no blockers to backfill",
        (
            "backfill, epoch 3; backfill running: 20,193 of 56,086 rows, copying rows, "
            "5,512 rows/s, 6.5 s left; blockers to read-postgres: BACKFILL_NOT_DONE"
        ),
        (
            "read-postgres, epoch 4; READS ARE SERVED BY THE FALLBACK, SQLITE; "
            "postgresql: connection refused; journal 12,000 rows; "
            "blockers to postgres-only: POSTGRES_UNAVAILABLE"
        ),
    ]


def test_watch_json_lines_equal_status_documents(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.verifying()
    expected = scripted_cli.json("migrate", "status")
    watching = Watching(scripted_cli, "--json", "--until-ready")
    eventually(lambda: len(watching.lines) >= 2)
    scripted.state = states.copied()
    assert watching.end() == (0, "")
    documents: list[Any] = [json.loads(line) for line in watching.lines]
    assert documents[0] == documents[1] == expected
    assert documents[-1]["blockers_to_next"] == []


@pytest.mark.parametrize(
    ("condition", "before", "after"),
    [
        (("--until", "backfill"), states.dual_write(), states.backfill()),
        (("--until", "dual-write"), states.sqlite_only(), states.read_postgres()),
        (("--until-backfill-done",), states.backfill(), states.copied(states.blocker("X"))),
        (("--until-backfill-done",), states.dual_write(), states.read_postgres()),
        (("--until-ready",), states.verifying(), states.copied()),
        (
            ("--until-ready", "--until", "read-postgres"),
            states.copied(),
            states.read_postgres(),
        ),
    ],
)
def test_watch_ends_when_its_condition_holds(
    condition: tuple[str, ...],
    before: Any,
    after: Any,
    scripted: ScriptedMigration,
    scripted_cli: Sagastore,
) -> None:
    scripted.state = before
    watching = Watching(scripted_cli, *condition)
    watching.wait_for("epoch")
    assert watching.process.poll() is None
    scripted.state = after
    assert watching.end() == (0, "")


def test_watch_continues_after_a_failed_backfill(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.backfill(pb.Backfill.STATE_FAILED, error="no room left")
    watching = Watching(scripted_cli, "--until-backfill-done")
    watching.wait_for("backfill failed: 20,193 of 56,086 rows, copying rows, no room left")
    scripted.state = states.copied()
    assert watching.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("condition", [(), ("--until", "postgres-only")])
def test_watch_can_be_interrupted(
    number: signal.Signals,
    condition: tuple[str, ...],
    scripted: ScriptedMigration,
    scripted_cli: Sagastore,
) -> None:
    watching = Watching(scripted_cli, *condition)
    watching.wait_for("sqlite-only")
    watching.process.send_signal(number)
    status, stderr = watching.end()
    if number is signal.SIGINT and not condition:
        assert (status, stderr) == (0, "")
    else:
        assert status == 128 + number
        assert stderr.count("\n") == 1


def test_watch_survives_a_server_restart(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    watching = Watching(scripted_cli, "--until", "dual-write")
    watching.wait_for("sqlite-only")
    scripted.stop()
    assert watching.process.poll() is None
    scripted.state = states.dual_write()
    scripted.start()
    status, _ = watching.end()
    assert status == 0
    assert len(watching.lines) == 2


def test_watch_reports_missing_updates_and_gives_up(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    watching = Watching(scripted_cli, "--json")
    eventually(lambda: watching.lines)
    scripted.stop()
    try:
        stderr = watching.process.stderr
        assert stderr is not None
        said = json.loads(stderr.readline())["note"]
        assert said.startswith("no update from the server for ")
        assert said.endswith("; still trying")
    finally:
        scripted.start()
    assert json.loads(stderr.readline()) == {"note": "the server responds again"}
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == (0, "")

    scripted_cli.env["SAGASTORE_TIMEOUT"] = "1"
    watching = Watching(scripted_cli)
    watching.wait_for("sqlite-only")
    scripted.stop()
    try:
        status, stderr_text = watching.end()
    finally:
        scripted.start()
    assert status == 4
    assert "cannot reach" in stderr_text or "shutting down" in stderr_text
    assert stderr_text.count("\n") == 1


def test_watch_reports_an_unreachable_server(scripted_cli: Sagastore) -> None:
    done = scripted_cli.run("--target", "127.0.0.1:1", "--timeout", "1", "migrate", "watch")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1


def test_watch_ends_when_its_output_pipe_is_closed(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    process = scripted_cli.start("migrate", "watch", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=200) == 141


def test_watch_updates_one_page_on_a_terminal(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.backfill()
    terminal = Terminal(scripted_cli, "migrate", "watch")
    terminal.wait_for("--until-backfill-done")
    scripted.state = states.read_postgres()
    terminal.wait_for("[read-postgres]")
    terminal.type("\x03")
    assert terminal.end() == 0
    last = terminal.text[terminal.text.rindex("sqlite-only >") :]
    assert "migrate to postgres-only" in last
    assert "interrupted" not in last
    # The cursor is back.
    assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l")


def test_watch_reports_missing_updates_on_a_terminal(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    terminal = Terminal(scripted_cli, "migrate", "watch", "--until", "backfill")
    terminal.wait_for("[sqlite-only]")
    scripted.stop()
    terminal.wait_for("no update from the server for")
    scripted.state = states.backfill()
    scripted.start()
    assert terminal.end() == 0


def test_watch_prints_a_line_when_the_pace_changes(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.backfill()
    watching = Watching(scripted_cli)
    watching.wait_for("copying rows")
    slower = states.backfill()
    slower.backfill.pace = pb.Backfill.PACE_OPERATOR
    slower.backfill.pace_detail = "the limit is 500 rows/s"
    scripted.state = slower
    watching.wait_for("throttled by the operator (the limit is 500 rows/s)")
    watching.process.send_signal(signal.SIGINT)
    assert watching.end()[0] == 0
