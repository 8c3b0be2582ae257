"""`sagastore-server backup --every --keep`: real processes beside a server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sagastore_server.cli.main import cli
from sagastore_server.sqlite.backup.record import read_record
from tests.conftest import ServerFactory
from tests.e2e.test_backup_command import Writing, command, run, saved_in
from tests.support.server_process import STARTUP_SECONDS, clean_environment

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="signals cannot be sent to one process there"
)


@contextmanager
def schedule(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command("backup", *options),
        cwd=folder,
        env=clean_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_backup(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    found: dict[str, Any] = json.loads(line)
    return found


def test_schedule_beside_a_server_under_writes(server_process: ServerFactory) -> None:
    server = server_process().start()
    folder, store = server.sqlite.parent, str(server.sqlite)
    backups = Path(f"{store}.backups")
    options = ("--every", "1s", "--keep", "2", "--sqlite", store, "--json")
    with Writing(server) as writing:
        with schedule(folder, *options) as process:
            made = [next_backup(process) for _ in range(4)]
            refused = run(folder, "backup", "--keep", "2", "--sqlite", store)
            assert refused.returncode == 1
            assert refused.stderr == (
                f"sagastore-server: another backup command is writing to {backups}; stop it, or "
                "use another folder\n"
            )
            process.kill()
        assert made[-1]["messages"] <= writing.count
    assert [one["kept"] for one in made] == [1, 2, 2, 2]
    assert [one["removed"] for one in made] == [[], [], [made[0]["file"]], [made[1]["file"]]]
    starts = [datetime.fromisoformat(one["next_at"]) for one in made]
    assert starts == sorted(starts)
    # A killed schedule leaves complete backups, and possibly a partial file and one too many.
    newest = max(path for path in backups.glob("*.db"))
    again = run(folder, "backup", "--keep", "1", "--sqlite", store, "--json")
    assert again.returncode == 0, again
    assert str(newest) in json.loads(again.stdout)["removed"]
    assert [path.name for path in backups.iterdir() if not path.name.startswith(".")] == [
        Path(json.loads(again.stdout)["file"]).name
    ]
    server.terminate()
    last = json.loads(again.stdout)
    done = run(folder, "restore", last["file"], "--sqlite", store, "--replace")
    assert done.returncode == 0, done
    assert saved_in(server.restart()) == [f"{n:06}" for n in range(last["messages"])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_between_two_backups_ends_the_schedule(
    server_process: ServerFactory, number: signal.Signals
) -> None:
    server = server_process().start()
    folder, store = server.sqlite.parent, str(server.sqlite)
    options = ("here", "--every", "1h", "--keep", "2", "--sqlite", store)
    (folder / "here").mkdir(mode=0o755)
    with schedule(folder, *options) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert ", verified, in " in line
        assert "; 1 kept, next at " in line
        process.send_signal(number)
        output, errors = process.communicate(timeout=STARTUP_SECONDS)
    assert (process.returncode, output, errors) == (0, "", "")
    (backup,) = (folder / "here").glob("*.db")
    record = read_record(server.sqlite)
    assert record is not None
    assert (record.interval, record.size) == (3600, backup.stat().st_size)
    # A command that is restarted waits until the next backup is due.
    with schedule(folder, *options) as process:
        assert process.stderr is not None
        assert "the newest backup is recent; the next one is due at " in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(STARTUP_SECONDS) == 0
    assert list((folder / "here").glob("*.db")) == [backup]


def test_failed_backup_is_reported_recorded_and_tried_again(
    server_process: ServerFactory,
) -> None:
    server = server_process().start()
    folder, store = server.sqlite.parent, server.sqlite
    options = ("here", "--every", "1s", "--keep", "2", "--sqlite", str(store), "--json")
    with schedule(folder, *options) as process:
        first = next_backup(process)
        (folder / "here").rename(folder / "away")
        assert process.stderr is not None
        line = process.stderr.readline()
        note = json.loads(line)["note"]
        assert note.startswith("cannot use here: No such file or directory; next")
        record = read_record(store)
        assert record is not None
        assert record.failed_at > record.succeeded_at > 0
        (folder / "away").rename(folder / "here")
        second = next_backup(process)
        process.terminate()
        assert process.wait(STARTUP_SECONDS) == 0
    assert second["kept"] == 2
    assert Path(first["file"]).name != Path(second["file"]).name


def test_store_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for options in (("--keep", "2"), ("backup.db",)):
        done = run(tmp_path, "backup", *options, "--sqlite", "no.db")
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line == "sagastore-server: cannot back up no.db: No such file or directory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "name the new file, or use --keep N"),
        (("--every", "1h"), "requires --keep N"),
        (("--every", "1", "--keep", "2"), "'1' has no unit"),
        (("--every", "soon", "--keep", "2"), "'soon' is not a duration"),
        (("--every", "1h", "--keep", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_options_are_usage_errors(options: tuple[str, ...], part: str) -> None:
    done = CliRunner().invoke(cli, ["backup", *options])
    assert done.exit_code == 2
    assert part in " ".join(done.output.replace("│", " ").split())
