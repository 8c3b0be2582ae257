"""Runs `sagastore` in a subprocess and creates its input files."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.server_process import clean_environment

SAMPLE = Path(__file__).parents[1] / "data" / "sgd-sample.jsonl"

_started: list[subprocess.Popen[str]] = []


class Sagastore:
    """The command, with a private home folder and a server."""

    def __init__(self, target: str, home: Path) -> None:
        self.home = home
        self.env = clean_environment(home) | {
            "SAGASTORE_TARGET": target,
            "XDG_STATE_HOME": str(home / "state"),
            "PYTHONUTF8": "1",
        }
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            self.env.pop(name, None)

    @property
    def checkpoints(self) -> list[Path]:
        """What imports have noted for their next run."""
        return sorted((self.home / "state" / "sagastore" / "imports").glob("*.json"))

    def run(
        self, *args: str | Path, stdin: str | bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            command_line(*args),
            input=data,
            capture_output=True,
            env=self.env | env,
            timeout=200,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def ok(self, *args: str | Path, stdin: str | bytes = b"", **env: str) -> str:
        """Run it, expect success, and return what it printed."""
        done = self.run(*args, stdin=stdin, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *args: str | Path, stdin: str | bytes = b"") -> Any:
        """Run it with --json, and return the one document that it printed."""
        return json.loads(self.ok("--json", *args, stdin=stdin))

    def lines(self, *args: str | Path) -> list[Any]:
        """Run it with --json, and return what its lines hold."""
        return [json.loads(line) for line in self.ok("--json", *args).splitlines()]

    def start(self, *args: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start it, and do not wait; see `end_all`."""
        process = subprocess.Popen(
            command_line(*args),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=self.env,
        )
        _started.append(process)
        return process


def end_all() -> None:
    """Kill what a test that has failed left running: it would trouble the tests after it."""
    while _started:
        with _started.pop() as process:
            process.kill()


def command_line(*args: str | Path) -> list[str]:
    """Return the command line that the entry point stands for."""
    code = "from sagastore.cli import main; main()"
    return [sys.executable, "-c", code, *map(str, args)]


def sample() -> list[dict[str, Any]]:
    """Return the messages of the sample."""
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").split("\n") if line]


def many(count: int) -> list[dict[str, Any]]:
    """Return many messages: those of the sample, under ever new ids."""
    messages = sample()
    return [
        messages[n % len(messages)] | {"id": f"{n * 7919 % 100_003:06d}-{n}"} for n in range(count)
    ]


def write_lines(path: Path, messages: list[dict[str, Any]]) -> Path:
    """Write messages as JSON Lines."""
    text = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    path.write_text(text, encoding="utf-8")
    return path


def by_id(path: Path) -> dict[str, Any]:
    """Return the messages of an export by id, in its order, without their creation times."""
    messages = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    for message in messages:
        assert datetime.fromisoformat(message.pop("created_at")).utcoffset() == timedelta()
    found = {message["id"]: message for message in messages}
    assert len(found) == len(messages)
    return found


def assert_ledger(path: Path, messages: list[dict[str, Any]]) -> None:
    """Check that an export has exactly these messages, in the order in which they were stored."""
    exported, expected = by_id(path), {message["id"]: message for message in messages}
    assert exported == expected
    assert list(exported) == list(expected)
