"""`sagastore migrate to`, `pause`, `resume`, `throttle` and `verify`."""

from __future__ import annotations

import json
import re

import grpc
import pytest
from typer.testing import CliRunner

from sagastore.cli.app import app
from sagastore.v1 import migration_pb2 as pb
from tests.cli import states
from tests.cli.command import Sagastore
from tests.cli.scripted_migration import Context, ScriptedMigration, abort, blockers
from tests.cli.terminal import Terminal

FOUND = (("BACKFILL_NOT_DONE", "20 of 30; wait"), ("NOT_VERIFIED", "never\ncompared"))


def _refuse(context: Context) -> None:
    code = grpc.StatusCode.FAILED_PRECONDITION
    abort(context, code, "20 of 30; wait; never compared", blockers(*FOUND))


def _break(context: Context) -> None:
    abort(context, grpc.StatusCode.UNAVAILABLE, "PostgreSQL is down")


def test_change_to_the_next_phase_is_printed(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    text = scripted_cli.ok("migrate", "to", "dual-write")
    assert text.startswith("sqlite-only -> dual-write: done\nEvery write is now also journaled")
    assert "sqlite-only > [dual-write] >" in text
    assert text.endswith("next          sagastore migrate to backfill\n")
    (request,) = scripted.requests
    assert (request.phase, request.dry_run, request.accept_quarantine) == (2, False, False)


@pytest.mark.parametrize(
    ("phase", "meaning"),
    [
        ("sqlite-only", "Writes are no longer replicated to PostgreSQL"),
        ("dual-write", "The backfill has stopped"),
        ("backfill", "SQLite serves reads again"),
    ],
)
def test_change_to_the_previous_phase_is_printed(
    phase: str, meaning: str, scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.read_postgres()
    text = scripted_cli.ok("migrate", "to", phase)
    assert text.startswith(f"read-postgres -> {phase}: done\n{meaning}")


def test_change_is_printed_as_json(scripted: ScriptedMigration, scripted_cli: Sagastore) -> None:
    document = scripted_cli.json("migrate", "to", "dual-write", "--accept-quarantine")
    assert document.pop("migration") == scripted_cli.json("migrate", "status")
    assert document == {
        "from": "sqlite-only",
        "to": "dual-write",
        "dry_run": False,
        "changed": True,
        "blockers": [],
    }
    assert scripted.requests[0].accept_quarantine


def test_change_to_the_current_phase_succeeds(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.backfill()
    assert scripted_cli.ok("migrate", "to", "backfill").startswith(
        "No change: backfill is already the current phase"
    )
    assert scripted_cli.json("migrate", "to", "backfill")["changed"] is False


def test_dry_run_changes_nothing(scripted: ScriptedMigration, scripted_cli: Sagastore) -> None:
    text = scripted_cli.ok("migrate", "to", "dual-write", "--dry-run")
    assert text.startswith(
        "sqlite-only -> dual-write is possible now. Dry run: nothing has changed"
    )
    document = scripted_cli.json("migrate", "to", "dual-write", "--dry-run")
    assert (document["dry_run"], document["changed"]) == (True, False)
    assert all(request.dry_run for request in scripted.requests)
    scripted.refuse = _refuse
    done = scripted_cli.run("migrate", "to", "dual-write", "--dry-run")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sagastore: sqlite-only -> dual-write would be blocked:\n")


def test_blocked_change_lists_blockers(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.backfill()
    scripted.refuse = _refuse
    done = scripted_cli.run("migrate", "to", "read-postgres")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "sagastore: backfill -> read-postgres is blocked; nothing has changed:\n"
        "  - BACKFILL_NOT_DONE: 20 of 30; wait\n"
        "  - NOT_VERIFIED: never compared\n"
    )
    again = scripted_cli.run("migrate", "to", "read-postgres", "--json")
    error = json.loads(again.stderr)
    assert (again.returncode, error["code"]) == (1, "FAILED_PRECONDITION")
    assert error["message"] == "backfill -> read-postgres is blocked; nothing has changed"
    assert [violation["reason"] for violation in error["violations"]] == [r for r, _ in FOUND]
    document = json.loads(again.stdout)
    assert [blocker["reason"] for blocker in document["blockers"]] == [r for r, _ in FOUND]
    assert (document["changed"], document["migration"]) == (False, None)


def test_outage_during_a_change_is_reported(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.refuse = _break
    done = scripted_cli.run("--timeout", "5", "migrate", "to", "dual-write")
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(
        r"sagastore: PostgreSQL is down \(gave up after \d+ attempts in [\d.]+ s\); "
        r"the change may still complete; to check, run: sagastore migrate status\n",
        done.stderr,
    )
    assert len(scripted.requests) > 1


def test_last_phase_requires_confirmation_on_a_terminal(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.read_postgres()
    command = ("migrate", "to", "postgres-only")
    for answer, status in (("\n", 1), ("n\n", 1), ("\x03", 130)):
        terminal = Terminal(scripted_cli, *command)
        terminal.wait_for("Continue? [y/N]")
        terminal.type(answer)
        assert terminal.end() == status
    assert scripted.requests == []

    terminal = Terminal(scripted_cli, *command)
    terminal.wait_for("Continue? [y/N]")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert "read-postgres -> postgres-only: done" in terminal.text
    assert len(scripted.requests) == 1

    for more in ("--yes", "--dry-run"):
        terminal = Terminal(scripted_cli, *command, more)
        assert terminal.end() == 0
        assert "Continue?" not in terminal.text


def test_last_phase_is_not_confirmed_without_a_terminal(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.read_postgres()
    done = scripted_cli.run("migrate", "to", "postgres-only")
    assert (done.returncode, done.stderr) == (0, "")
    assert "next          nothing: the migration is complete\n" in done.stdout


def test_backfill_can_be_paused_resumed_and_throttled(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.backfill(pb.Backfill.STATE_PAUSED)
    text = scripted_cli.ok("migrate", "pause")
    assert text == "backfill paused: 20,193 of 56,086 rows, copying rows\n"
    scripted.state = states.backfill()
    text = scripted_cli.ok("migrate", "resume")
    assert text.startswith("backfill running: 20,193 of 56,086 rows, copying rows, 5,512 rows/s")
    scripted_cli.ok("migrate", "resume", "--batch-size", "200", "--max-rows-per-second", "0")
    document = scripted_cli.json("migrate", "throttle", "--max-rows-per-second", "500")
    assert document == scripted_cli.json("migrate", "status")
    assert scripted.requests == [
        pb.ControlBackfillRequest(paused=True),
        pb.ControlBackfillRequest(paused=False),
        pb.ControlBackfillRequest(paused=False, batch_size=200, max_rows_per_second=0),
        pb.ControlBackfillRequest(max_rows_per_second=500),
    ]
    scripted.refuse = _refuse
    done = scripted_cli.run("migrate", "pause")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sagastore: 20 of 30; wait; never compared\n"


def test_verify_without_mismatch_succeeds(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.verification = [
        pb.VerifyResponse(compared=5, total=10),
        pb.VerifyResponse(compared=10, total=10, done=True),
    ]
    done = scripted_cli.run("migrate", "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("10 rows compared in ")
    assert done.stdout.endswith(" s: no mismatch\n")
    document = scripted_cli.json("migrate", "verify")
    assert document.pop("seconds") >= 0
    assert document == {"compared": 10, "mismatch_count": 0, "repaired": 0, "mismatches": []}
    terminal = Terminal(scripted_cli, "migrate", "verify")
    assert terminal.end() == 0
    assert "verifying" in terminal.text
    assert "no mismatch" in terminal.text


def test_verify_lists_mismatches_and_fails(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.verification = [
        pb.VerifyResponse(
            compared=5,
            total=10,
            mismatches=[
                pb.Mismatch(id="a\x1b[2J", kind="MISSING"),
                pb.Mismatch(id="b", kind="DIFFERENT", fields=["tags", "content"]),
            ],
        ),
        pb.VerifyResponse(
            compared=10,
            total=10,
            mismatches=[pb.Mismatch(id="c", kind="EXTRA")],
            done=True,
            mismatch_count=1003,
        ),
    ]
    done = scripted_cli.run("migrate", "verify")
    assert done.returncode == 1
    assert done.stdout.startswith(
        "Differing rows:\n"
        "  a\u241b[2J  MISSING  -\n"
        "  b  DIFFERENT  tags, content\n"
        "  c  EXTRA  -\n"
        "1,000 more are not listed\n"
        "10 rows compared in "
    )
    assert done.stderr == (
        "sagastore: 1,003 rows differ; to copy them from SQLite again, run: "
        "sagastore migrate verify --repair\n"
    )
    scripted.verification[-1].repaired = 1003
    done = scripted_cli.run("migrate", "verify", "--repair", "--json")
    assert done.returncode == 1
    assert "to verify them, run: sagastore migrate verify" in done.stderr
    document = json.loads(done.stdout)
    assert document["repaired"] == 1003
    assert document["mismatches"][1] == {
        "id": "b",
        "kind": "DIFFERENT",
        "fields": ["tags", "content"],
    }
    assert [request.repair for request in scripted.requests] == [False, True]


def test_verify_reports_an_early_end(scripted: ScriptedMigration, scripted_cli: Sagastore) -> None:
    scripted.verification = [pb.VerifyResponse(compared=5, total=10)]
    done = scripted_cli.run("migrate", "verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert "ended the verification early" in done.stderr
    scripted.refuse = _refuse
    done = scripted_cli.run("migrate", "verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sagastore: 20 of 30; wait; never compared\n"


@pytest.mark.parametrize(
    "args",
    [
        ("to",),
        ("to", "nowhere"),
        ("to", "unknown"),
        ("watch", "--until", "done"),
        ("throttle", "--json"),
        ("throttle", "--batch-size", "0"),
        ("resume", "--batch-size", "10001"),
        ("resume", "--max-rows-per-second", "-1"),
        ("nonsense",),
    ],
)
def test_usage_error_exits_with_2(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["migrate", *args])
    assert (result.exit_code, result.stdout) == (2, "") or args == ("to",)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "name", ["status", "watch", "to", "pause", "resume", "throttle", "verify", "quarantine"]
)
def test_help_has_examples(name: str) -> None:
    result = CliRunner().invoke(app, ["migrate", name, "--help"])
    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Example")
    assert f"sagastore migrate {name}" in examples
