"""Fuzzer of `sagastore-server inspect` and `sagastore import`: foreign and damaged files.

    python -m tools.fuzz.foreign_files [--count N] [--seed TEXT]
    python -m tools.fuzz.foreign_files --replay FILE

Both commands run in this process, one file after the other, against a real server. Rules:

- Exit status 0, 1 or 6, without a traceback; if it is not 0, standard error says why.
- Exit status 0 only if rows were stored, or can be served.
- `inspect` and `import` agree on a database: both refuse it, or find the same rows and reasons.
- No output has a secret of the environment, and no file is changed.

Exit status 1 if a rule was broken; the files are saved below ``var/fuzz``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from sagastore.cli.app import app
from sagastore_server.cli.main import cli
from tools.fuzz.foreign_inputs import ForeignFile, made
from tools.fuzz.watched_server import WatchedServer

_FOLDER = Path("var/fuzz")
_SECONDS = 120
"""Longest time for one file, on a busy machine; the slowest takes about a second."""

_FORBIDDEN = ("Traceback", "internal error", "defect", "SELECT ", "sqlite3.")
_ANSWERS = frozenset({0, 1, 6})


class _Answer(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    err: str
    document: dict[str, Any]
    """Its JSON; empty if it printed none."""


class ForeignFiles:
    """Runs both commands on files and checks the answers.

    Args:
        target: Address of the server that imports go to.
        folder: A folder for the files and for the state of the commands.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._secret = secrets.token_hex(12)
        self.statuses: Counter[str] = Counter()

    def complaints(self, one: ForeignFile) -> list[str]:
        """Return the rules that the commands break on a file."""
        path = self._folder / "input"
        path.write_bytes(one.content)
        inspected = self._run(cli, "inspect", str(path), "--json")
        imported = self._run(app, "--json", "import", str(path), "--restart")
        found = [f"inspect: {text}" for text in self._wrong(inspected)]
        found += [f"import: {text}" for text in self._wrong(imported)]
        found += _nothing_done(inspected, imported)
        found += _disagreements(inspected, imported)
        if path.read_bytes() != one.content or len(list(path.parent.glob("input*"))) != 1:
            found.append("the file or its folder was changed")
        self.statuses[f"{one.kind}: inspect {inspected.status}, import {imported.status}"] += 1
        return found

    def _run(self, command: Any, *args: str) -> _Answer:
        env = {
            "SAGASTORE_TARGET": self._target,
            "SAGASTORE_TOKEN": self._secret,
            "SAGASTORE_POSTGRES": f"postgresql://user:{self._secret}@127.0.0.1:1/db",
            "XDG_STATE_HOME": str(self._folder / "state"),
        }
        result = CliRunner().invoke(command, list(args), env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return _Answer(99, "", f"Traceback: {result.exception!r}", {})
        try:
            document = json.loads(result.stdout)
        except ValueError:
            document = {}
        return _Answer(result.exit_code, result.stdout, result.stderr, document)

    def _wrong(self, answer: _Answer) -> Iterator[str]:
        if answer.status not in _ANSWERS:
            yield f"exit status {answer.status}"
        for text in _FORBIDDEN:
            if text in answer.err and "CREATE TABLE messages_copy" not in answer.err:
                yield f"standard error has {text!r}: {answer.err}"
        if self._secret in answer.out + answer.err:
            yield "the output has a secret"
        if answer.status and not answer.err.strip():
            yield f"exit status {answer.status} without a reason"
        if not all(map(_is_of_program, answer.err.splitlines())):
            yield f"standard error has a line of another form: {answer.err!r}"


def _is_of_program(line: str) -> bool:
    """Return whether a line names its program, or is JSON as ``--json`` asks for."""
    if line.startswith("sagastore"):
        return True
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _nothing_done(inspected: _Answer, imported: _Answer) -> Iterator[str]:
    if imported.status == 0:
        counts = imported.document
        if not counts or counts["saved"] + counts["unchanged"] + counts["skipped"] == 0:
            yield f"import: exit status 0, and nothing was stored: {counts}"
    legacy = inspected.document.get("legacy")
    if inspected.status == 0 and legacy:
        files = (legacy["files"] or 0) - legacy["files_quarantined"]
        if legacy["served"] + files == 0:
            yield "inspect: exit status 0, and nothing can be served"


def _disagreements(inspected: _Answer, imported: _Answer) -> Iterator[str]:
    legacy = inspected.document.get("legacy")
    if inspected.document.get("kind") in {"foreign", "corrupt"} and imported.status != 1:
        yield f"inspect refuses the file and import does not: {inspected.document['reason']}"
    if legacy is None:
        return
    if imported.status not in {0, 6}:
        yield f"inspect reads the file and import does not: {imported.err}"
        return
    counts = imported.document
    stored = counts["saved"] + counts["unchanged"]
    if (stored, counts["rejected"]) != (legacy["served"], legacy["quarantined"]):
        yield f"inspect finds {legacy['served']} and {legacy['quarantined']}, import {counts}"
    listed = counts["first_rejects"]
    if listed != legacy["set_aside"][: len(listed)]:
        yield f"other reasons: {legacy['set_aside']} and {listed}"


@contextmanager
def _limited() -> Iterator[None]:
    """End the block with TimeoutError if it hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(count: int, seed: str, failures: Path) -> tuple[Counter[str], list[str]]:
    """Try ``count`` files; return the statuses by kind, and the broken rules.

    Args:
        count: The number of files.
        seed: What they are made from.
        failures: The folder for files that break a rule.

    """
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        server = WatchedServer(Path(name) / "fuzz.db")
        server.start()
        try:
            work = Path(name) / "work"
            work.mkdir()
            fuzzer = ForeignFiles(server.address, work)
            for number in range(count):
                found += _try(fuzzer, made(seed, number), failures)
                if number % 1000 == 999:
                    _say(f"{number + 1:,} files, {len(found)} broken rules")
        finally:
            server.close()
    return fuzzer.statuses, found


def _try(fuzzer: ForeignFiles, one: ForeignFile, failures: Path) -> list[str]:
    try:
        with _limited():
            broken = fuzzer.complaints(one)
    except TimeoutError:
        broken = [f"took more than {_SECONDS} s"]
    if broken:
        failures.mkdir(parents=True, exist_ok=True)
        saved = failures / f"file-{one.number}"
        saved.write_bytes(one.content)
        _say("\n".join(f"{saved}: {text}" for text in broken))
    return broken


def _say(text: str) -> None:
    print(text, flush=True)


def _replay(path: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        server = WatchedServer(Path(name) / "fuzz.db")
        server.start()
        try:
            fuzzer = ForeignFiles(server.address, Path(name))
            broken = fuzzer.complaints(ForeignFile(0, "replayed", path.read_bytes()))
        finally:
            server.close()
    _say("\n".join(broken) or "no rule was broken")
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.foreign_files")
    parser.add_argument("--count", type=int, default=7_000)
    parser.add_argument("--seed", default="")
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if given.replay is not None:
        return _replay(given.replay)
    seed = given.seed or secrets.token_hex(4)
    _say(f"seed {seed}")
    failures = _FOLDER / "foreign"
    shutil.rmtree(failures, ignore_errors=True)
    statuses, found = run(given.count, seed, failures)
    for answer, times in sorted(statuses.items()):
        _say(f"{times:>7,}  {answer}")
    _say(f"{given.count:,} files, {len(found)} broken rules")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
