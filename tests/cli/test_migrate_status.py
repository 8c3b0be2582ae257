"""The page of `sagastore migrate status` in all states."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable

import pytest

from sagastore import _convert_migration
from sagastore.cli import migration_page
from sagastore.cli.console import screen
from sagastore.cli.settings import Settings
from sagastore.v1 import migration_pb2 as pb
from tests.cli import states
from tests.cli.command import Sagastore
from tests.cli.scripted_migration import ScriptedMigration
from tests.cli.terminal import Terminal, without_steering

Shown = Callable[..., str]

STEPS = "sqlite-only > dual-write > {} > postgres-only"
NOTHING_ELSE = ["SAGASTORE_TARGET", "FORCE_COLOR", "NO_COLOR"]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Return what prints a state as a page, and returns what was printed."""
    for name in NOTHING_ELSE:
        monkeypatch.delenv(name, raising=False)

    def show(state: pb.Migration, settings: Settings | None = None) -> str:
        page = migration_page.page(_convert_migration.migration(state), settings or Settings())
        screen().page(page)
        return capsys.readouterr().out

    return show


def _lines(page: str) -> list[str]:
    return [" ".join(line.split()) for line in page.splitlines()]


def test_status_in_sqlite_only(shown: Shown) -> None:
    assert shown(states.sqlite_only()) == (
        "[sqlite-only] > dual-write > backfill > read-postgres > postgres-only\n"
        "\n"
        "epoch         1\n"
        "reads         from SQLite\n"
        "sqlite        healthy, 56,086 messages, schema 3\n"
        "postgresql    healthy, 20,193 messages, 1,204 sessions, schema 2\n"
        "quarantine    0 rows\n"
        "\n"
        "next          sagastore migrate to dual-write\n"
    )


def test_status_in_dual_write(shown: Shown) -> None:
    lines = _lines(shown(states.dual_write()))
    assert lines[0] == "sqlite-only > [dual-write] > backfill > read-postgres > postgres-only"
    assert "journal 12 writes wait for PostgreSQL, the first 0.2 s old" in lines
    assert lines[-1] == "next sagastore migrate to backfill"


def test_status_during_backfill(shown: Shown) -> None:
    assert shown(states.backfill()) == (
        "sqlite-only > dual-write > [backfill] > read-postgres > postgres-only\n"
        "\n"
        "epoch         3\n"
        "reads         from SQLite\n"
        "sqlite        healthy, 56,086 messages, schema 3\n"
        "postgresql    healthy, 20,193 messages, 1,204 sessions, schema 2\n"
        "backfill      [#######-------------]  36 %  20,193 of 56,086 rows\n"
        "              running, copying rows, 5,512 rows/s, 6.5 s left\n"
        "journal       PostgreSQL has every write\n"
        "verification  not done yet\n"
        "quarantine    1 row\n"
        "\n"
        "Blockers to read-postgres:\n"
        "  - BACKFILL_NOT_DONE: what it is; what to do\n"
        "\n"
        "next          sagastore migrate watch --until-backfill-done\n"
    )


def test_status_of_paused_and_failed_backfill(shown: Shown) -> None:
    lines = _lines(shown(states.backfill(pb.Backfill.STATE_PAUSED)))
    assert "paused, copying rows" in lines
    assert lines[-1] == "next sagastore migrate resume"
    lines = _lines(shown(states.backfill(pb.Backfill.STATE_FAILED, error="no room\nleft")))
    assert "failed, copying rows" in lines
    assert "no room left" in lines
    almost = states.backfill()
    almost.backfill.copied = almost.backfill.total - 1
    assert "99 %" in shown(almost)
    almost.backfill.total = 0
    assert "%" not in shown(almost)


def test_status_shows_verification_and_shadow_reads(shown: Shown) -> None:
    lines = _lines(shown(states.copied()))
    assert "backfill done, 56,086 rows" in lines
    assert "verification 2023-11-14 22:13:32 UTC, 56,086 rows compared, no mismatch" in lines
    assert "shadow reads 120 compared, 0 answered differently, 2 not compared" in lines
    assert lines[-1] == "next sagastore migrate to read-postgres"

    lines = _lines(shown(states.differing()))
    found = "56,086 rows compared, 3 mismatches, 2 queued for repair"
    assert f"verification 2023-11-14 22:13:32 UTC, {found}" in lines
    answers = "2023-11-14 22:13:20 UTC Search(0): SQLite a@3, b@4, PostgreSQL nothing"
    at = lines.index("shadow reads 120 compared, 5 answered differently, 2 not compared")
    assert lines[at + 1] == answers
    assert sum("Search(" in line for line in lines) == 3
    assert lines[-1] == "next sagastore migrate verify --repair"

    lines = _lines(shown(states.verifying()))
    assert "verifying [##########----------] 50 % 28,043 of 56,086 rows, 1 mismatch" in lines
    assert lines[-1] == "next sagastore migrate watch --until-ready"


def test_status_in_read_postgres(shown: Shown) -> None:
    lines = _lines(shown(states.read_postgres()))
    assert lines[0] == STEPS.format("backfill > [read-postgres]")
    assert "reads from PostgreSQL" in lines
    # On a line of its own, so that the command can be pasted.
    assert lines[-2:] == ["next sagastore migrate to postgres-only", "cannot be reversed"]

    lines = _lines(shown(states.fallback()))
    assert "reads from the fallback, SQLite: PostgreSQL is down or behind" in lines
    assert "postgresql connection refused" in lines
    assert "journal 12,000 writes wait for PostgreSQL, the first 1:02 min old" in lines
    assert "- POSTGRES_UNAVAILABLE: it is down; start it" in lines


def test_status_in_postgres_only(shown: Shown) -> None:
    lines = _lines(shown(states.postgres_only()))
    assert lines[0].endswith("> [postgres-only]")
    assert not any(line.startswith(("journal", "sqlite ")) for line in lines)
    assert lines[-1] == "next nothing: the migration is complete"


def test_status_of_unknown_phase(shown: Shown) -> None:
    lines = _lines(shown(pb.Migration()))
    assert lines[0] == "unknown phase; update sagastore"
    assert lines[-1] == "next update sagastore"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (states.copied(states.blocker("NOT_VERIFIED")), ["next sagastore migrate verify"]),
        (
            states.copied(states.blocker("JOURNAL_LAG")),
            ["next sagastore migrate watch --until-ready"],
        ),
        (
            states.copied(states.blocker("QUARANTINE_NOT_ACCEPTED")),
            [
                "next sagastore migrate quarantine",
                "then sagastore migrate to read-postgres --accept-quarantine",
            ],
        ),
        (
            states.sqlite_only(states.blocker("TARGET_NOT_EMPTY")),
            ["next sagastore migrate to dual-write --dry-run", "when the problem is solved"],
        ),
        (
            states.sqlite_only(states.blocker("SOMETHING_NEW")),
            ["next sagastore migrate to dual-write --dry-run", "when the problem is solved"],
        ),
    ],
)
def test_next_command_depends_on_blockers(
    shown: Shown, state: pb.Migration, expected: list[str]
) -> None:
    assert _lines(shown(state))[-len(expected) :] == expected


def test_next_command_repeats_given_options_quoted(shown: Shown) -> None:
    given = {"target": ("--target", "db.example:1"), "tls_ca": ("--tls-ca", "my ca's.pem")}
    expected = ["sagastore", "--target", "db.example:1", "--tls-ca", "my ca's.pem"]
    line = shown(states.sqlite_only(), Settings(given=given)).splitlines()[-1]
    assert shlex.split(line) == ["next", *expected, "migrate", "to", "dual-write"]


def test_long_next_command_can_be_pasted_from_a_terminal(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "50"}.items():
        monkeypatch.setenv(name, value)
    given = {"target": ("--target", "db.example:1"), "tls_ca": ("--tls-ca", "/etc/my ca.pem")}
    page = without_steering(shown(states.sqlite_only(), Settings(given=given)))
    _, _, command = page.rpartition("next ")
    assert command.count("\\\n") >= 1
    done = subprocess.run(
        ["sh", "-c", f'sagastore() {{ printf "%s\\n" "$@"; }}\n{command}'],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words = [word for option in given.values() for word in option]
    assert done.stdout.splitlines() == [*words, "migrate", "to", "dual-write"]


def test_status_sanitizes_text_of_the_server(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    state = states.backfill(pb.Backfill.STATE_FAILED, error="a\x1b[2Jb\nc")
    state.blockers_to_next[0].detail = "d\x1b[31me"
    state.stores[1].healthy, state.stores[1].detail = False, "f\x9b31mg"
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("NO_COLOR", "1")
            monkeypatch.setenv("TERM", "dumb")
        page = shown(state)
        assert not set(page) & {"\x1b", "\x9b"}
        assert "\u241b[2Jb c" in page


def test_status_wraps_on_a_narrow_terminal(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "50"}.items():
        monkeypatch.setenv(name, value)
    rows = without_steering(shown(states.differing())).splitlines()
    assert all(len(row) <= 50 for row in rows)
    at = next(n for n, row in enumerate(rows) if row.startswith("verification"))
    assert rows[at + 1].startswith(" " * 14)


def test_status_alarms_are_red_on_a_terminal(
    scripted: ScriptedMigration, scripted_cli: Sagastore
) -> None:
    scripted.state = states.fallback()
    terminal = Terminal(scripted_cli, "migrate", "status")
    assert terminal.end() == 0
    assert "\x1b[1;31mfrom the fallback" in terminal.raw
    assert "\x1b[1;7m[read-postgres]" in terminal.raw
    plain = Terminal(scripted_cli, "migrate", "status", NO_COLOR="1")
    assert plain.end() == 0
    assert "31m" not in plain.raw
    assert plain.text == terminal.text
    assert scripted_cli.ok("migrate", "status") == terminal.text


def test_status_json_has_all_fields(scripted: ScriptedMigration, scripted_cli: Sagastore) -> None:
    scripted.state = states.differing()
    text = scripted_cli.ok("migrate", "status", "--json")
    document = json.loads(text)
    assert text.count("\n") == 1
    assert list(document) == [
        *("phase", "epoch", "reads_from", "reads_from_fallback", "stores", "backfill"),
        *("journal_rows", "journal_lag_seconds", "verifying", "last_verification", "shadow"),
        *("quarantined", "blockers_to_next"),
    ]
    assert document["last_verification"] == {
        "started_at": "2023-11-14T22:13:20+00:00",
        "finished_at": "2023-11-14T22:13:32+00:00",
        "compared": 56_086,
        "mismatch_count": 3,
        "repaired": 2,
    }
    assert document["verifying"] is None
    assert document["shadow"]["differences"][0] == {
        "time": "2023-11-14T22:13:20+00:00",
        "read": "Search(0)",
        "sqlite": "a@3, b@4",
        "postgresql": "",
    }
    assert [blocker["reason"] for blocker in document["blockers_to_next"]] == [
        "SHADOW_READS_DIFFER",
        "VERIFICATION_MISMATCH",
    ]
    scripted.state = states.fallback()
    document = scripted_cli.json("migrate", "status")
    assert (document["reads_from"], document["reads_from_fallback"]) == ("sqlite", True)
    assert document["stores"][1]["messages"] is None
    scripted.state = states.verifying()
    assert scripted_cli.json("migrate", "status")["verifying"] == {
        "compared": 28_043,
        "total": 56_086,
        "mismatch_count": 1,
        "repaired": 0,
    }


@pytest.mark.parametrize(
    ("pace", "detail", "expected"),
    [
        (pb.Backfill.PACE_FULL, "", "at full speed"),
        (
            pb.Backfill.PACE_OPERATOR,
            "the limit is 500 rows/s",
            "throttled by the operator (the limit is 500 rows/s)",
        ),
        (
            pb.Backfill.PACE_LATENCY,
            "writes took 9.0 ms",
            "throttled because writes became slower (writes took 9.0 ms)",
        ),
        (pb.Backfill.PACE_LOAD, "", "throttled because clients write"),
    ],
)
def test_status_says_what_limits_the_backfill(
    shown: Shown, pace: pb.Backfill.Pace.ValueType, detail: str, expected: str
) -> None:
    state = states.backfill()
    state.backfill.pace, state.backfill.pace_detail = pace, detail
    assert f"5,512 rows/s, 6.5 s left, {expected}\n" in shown(state)


def test_status_tells_whether_counts_are_of_one_revision(shown: Shown) -> None:
    state = states.copied()
    assert "counted" not in shown(state)
    state.stores[0].revision = state.stores[1].revision = 56_090
    assert "counted       at revision 56,090 in both stores\n" in shown(state)
    state.stores[1].revision = 7
    assert "counted" not in shown(state)


def test_numbers_of_one_are_singular(shown: Shown) -> None:
    state = states.dual_write()
    state.journal_rows = state.quarantined = 1
    state.stores[0].messages = state.stores[0].sessions = state.stores[0].files = 1
    page = shown(state)
    assert "healthy, 1 message, 1 session, 1 file, schema 3\n" in page
    assert "1 write waits for PostgreSQL, the first 0.2 s old\n" in page
    assert "quarantine    1 row\n" in page
