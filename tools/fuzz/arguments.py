"""Fuzzer of the command lines of both programs (``make fuzz-arguments``).

    python -m tools.fuzz.arguments [--count N] [--seed TEXT]

Runs argument vectors in this process, against a real server, and checks every outcome. Exit
status 1 if a check failed; a failing vector is printed in a form that can be pasted into Python.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import typer

from sagastore.cli.app import app as client
from sagastore.commandline.exit_status import ExitStatus
from sagastore_server.cli.main import cli as server
from tests.support.server_process import ServerProcess
from tools.fuzz.argument_mix import CLIENT, SECRET, SERVER, Mix, Places, Vector

_PROGRAMS = {CLIENT: client, SERVER: server}
_HANGS_AFTER = 60
"""Seconds; a call of the client ends after half a second (``--timeout``)."""
_LISTING = {"list", "search", "quarantine"}
"""Commands that print JSON Lines, and without results none."""
_STATUSES = {int(status) for status in ExitStatus}


class Outcome(NamedTuple):
    """What a vector did."""

    status: int
    stdout: str
    stderr: str


class HangError(Exception):
    """A vector did not end."""


@contextmanager
def prepared(folder: Path) -> Iterator[Places]:
    """Start a server with some messages, and prepare files and the environment."""
    line = {"id": "a", "provider": "openai", "role": "user", "content": "hello world"}
    files = {
        "one.jsonl": json.dumps(line | {"session_id": "session-1"}) + "\n",
        "two.jsonl": json.dumps(line) + "\n" + json.dumps(line | {"id": "b"}) + "\n",
        "token": f"saga_{SECRET}\n",
        "settings.toml": f'postgres = "postgresql://u:{SECRET}@127.0.0.1:1/db"\n',
        "rubbish.toml": f'postgres = "{SECRET}\n',
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "binary").write_bytes(os.urandom(2000))
    (folder / "empty-folder").mkdir()
    process = ServerProcess(folder / "served.db").start()
    before = dict(os.environ)
    # Nothing outside of the folder is read or written, and a token is in the environment.
    os.environ.update(
        HOME=str(folder),
        XDG_STATE_HOME=str(folder / "state"),
        XDG_DATA_HOME=str(folder / "data"),
        SAGASTORE_TOKEN=f"saga_{SECRET}",
        COLUMNS="80",
        TERM="dumb",
        GRPC_VERBOSITY="NONE",
    )
    for name in ("SAGASTORE_TARGET", "SAGASTORE_POSTGRES", "FORCE_COLOR"):
        os.environ.pop(name, None)
    try:
        names = (*files, "binary", "empty-folder", "served.db", "missing/x", "new.db")
        yield Places(process.address, folder, names)
    finally:
        os.environ.clear()
        os.environ.update(before)
        process.close()


def run(vector: Vector, streams: _Streams) -> Outcome:
    """Run a vector in this process.

    Raises:
        HangError: It did not end.
    """
    command = typer.main.get_command(_PROGRAMS[vector.program])
    with streams.installed(), _alarm():
        status = 0
        try:
            command.main(list(vector.arguments), vector.program)
        except SystemExit as exc:
            status = int(exc.code or 0)
    return Outcome(status, _content(streams.out), _content(streams.err))


class _Streams:
    """Standard streams in files, the same for all vectors: loggers keep the first that they get."""

    def __init__(self) -> None:
        # As in a locale without UTF-8, in which some characters cannot be printed.
        self.out, self.err = (
            io.TextIOWrapper(tempfile.TemporaryFile(), "ascii")  # noqa: SIM115 - until the exit
            for _ in range(2)
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the standard streams, also for what writes to the descriptors (gRPC, exports)."""
        streams, excepthook = (sys.stdin, sys.stdout, sys.stderr), sys.excepthook
        kept = os.dup(1), os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        for stream in (self.out, self.err):
            stream.seek(0)
            stream.truncate()
        sys.stdin = io.TextIOWrapper(io.BytesIO(b"from standard input\n"), "utf-8")
        sys.stdout, sys.stderr = self.out, self.err
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
            sys.excepthook = excepthook  # `serve` replaces it.
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
            for descriptor in (*kept, nowhere):
                os.close(descriptor)


def _content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    descriptor = stream.fileno()
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()


@contextmanager
def _alarm() -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise HangError

    former = signal.signal(signal.SIGALRM, hang)
    signal.alarm(_HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def complaints(vector: Vector, outcome: Outcome) -> Iterator[str]:
    """Yield what is wrong with an outcome."""
    printed = outcome.stdout + outcome.stderr
    if outcome.status not in _STATUSES:
        yield f"exit status {outcome.status} is not documented"
    for word in ("Traceback (most recent call last)", "internal error", "<class '"):
        if word in printed:
            yield f"{word!r} is in the output"
    if SECRET in printed:
        yield "a secret is in the output"
    if not printed.strip() and not (vector.wants_json and _LISTING.intersection(vector.arguments)):
        yield "nothing is printed"
    yield from _wrong_errors(vector, outcome)
    if outcome.status == ExitStatus.DONE and _imported_nothing(outcome):
        yield "an import that stored nothing ended with 0"


def _wrong_errors(vector: Vector, outcome: Outcome) -> Iterator[str]:
    lines = outcome.stderr.splitlines()
    # The help, and the problems that `config --check` finds, are on standard output.
    if outcome.status != ExitStatus.DONE and not lines and not outcome.stdout.strip():
        yield "a failure is not explained"
    for line in lines:
        if vector.wants_json:
            if not _is_json_object(line):
                yield f"not a JSON object on standard error: {line[:200]!r}"
        elif not line.startswith((f"{vector.program}: ", "  - ", "Added to ", "{")):
            yield f"unexpected line on standard error: {line[:200]!r}"


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _imported_nothing(outcome: Outcome) -> bool:
    try:
        summary: Any = json.loads(outcome.stdout)
    except ValueError:
        return False
    stored = ("saved", "unchanged", "skipped")
    return (
        isinstance(summary, dict)
        and "rejected" in summary
        and not any(summary[name] for name in stored)
    )


def campaign(count: int, seed: str, folder: Path) -> tuple[list[str], Counter[tuple[str, int]]]:
    """Run vectors; return the failures, and how often each program exited with each status."""
    failures: list[str] = []
    statuses: Counter[tuple[str, int]] = Counter()
    with prepared(folder) as places:
        mix, streams = Mix(seed, places), _Streams()
        # Events of gRPC for the closed loops of earlier vectors are logged as errors. A real
        # command has one loop.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        for number in range(count):
            if number % 500 == 0:
                print(f"{number:,} vectors, {len(failures)} failures", flush=True)
            vector = mix.make()
            # Stays there if this process dies.
            (folder / "current").write_text(repr(vector), encoding="utf-8")
            try:
                outcome = run(vector, streams)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is a failure
                failures.append(f"{vector!r}: {type(exc).__name__}: {exc}")
                continue
            statuses[vector.program, outcome.status] += 1
            failures += [f"{vector!r}: {text}" for text in complaints(vector, outcome)]
    return failures, statuses


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.arguments")
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", default="")
    given = parser.parse_args()
    seed = given.seed or secrets.token_hex(4)
    print(f"seed {seed}", flush=True)
    # Some vectors name files without a folder, and some of these are created.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, chdir(folder):
        failures, statuses = campaign(given.count, seed, Path(folder))
    for failure in failures[:50]:
        print(failure)
    for (program, status), number in sorted(statuses.items()):
        print(f"{program:18} {status:3} {number:7,}")
    print(f"{given.count:,} vectors, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
