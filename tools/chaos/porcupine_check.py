"""Second check of histories with Porcupine (``tools/chaos/porcupine``).

    python -m tools.chaos.porcupine_check [FILE or FOLDER...]

Builds the Go program if it is outdated, runs it over histories, and compares its verdict on each
message id with that of `tools.chaos.checker`. Folders are searched for ``history.jsonl``; the
default is ``var/chaos``. Exit status 1 if either checker finds a violation, or if they disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.chaos.checker import Report, check
from tools.chaos.history import History
from tools.chaos.linearizable import Verdict, linearize
from tools.chaos.positions import latest_only, unconfirmed_ids
from tools.chaos.projection import Projection
from tools.chaos.violations import Kind

SOURCES = Path(__file__).with_name("porcupine")
PROGRAM = Path(__file__).parents[2] / "build/tools/bin/porcupinecheck"
BUILD_SECONDS = 300
RUN_SECONDS = 600


class PorcupineError(Exception):
    """The Porcupine checker cannot be built or run; the message is one line."""


@dataclass(frozen=True)
class PorcupineReport:
    """Porcupine's result for one history."""

    operations: int
    ids: int
    seconds: float
    verdict: str
    """``linearizable``, ``violation``, or ``unknown`` if a check timed out."""
    violations: dict[str, str] = field(default_factory=dict)
    """Explanations by message id."""
    undecided: tuple[str, ...] = ()
    """Ids whose check timed out."""

    @classmethod
    def read(cls, record: dict[str, Any]) -> PorcupineReport:
        """Parse one line of the program's output."""
        return cls(
            record["operations"],
            record["ids"],
            record["seconds"],
            record["verdict"],
            {one["id"]: one["explanation"] for one in record["violations"]},
            tuple(record["undecided"]),
        )

    def as_json(self) -> dict[str, Any]:
        """Return it for the verdict on a round."""
        return {**self.__dict__, "undecided": list(self.undecided)}

    def __str__(self) -> str:
        summary = f"{self.operations:,} operations, {self.ids:,} ids, {self.seconds:.1f} s"
        wrong = [f"  violation at id {id}: {why}" for id, why in self.violations.items()]
        wrong += [f"  unknown, timed out: id {id}" for id in self.undecided]
        return "\n".join([f"{summary}: {self.verdict}", *wrong])


def build() -> Path:
    """Build the program if it is missing or older than its source; return its path.

    Raises:
        PorcupineError: Go is missing, or the build failed.
    """
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if PROGRAM.exists() and PROGRAM.stat().st_mtime >= newest:
        return PROGRAM
    if shutil.which("go") is None:
        raise PorcupineError("the Porcupine checker needs Go, which is not on the PATH")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROGRAM.parent) as folder:
        made = Path(folder) / PROGRAM.name
        done = _run(["go", "build", "-o", str(made), "."], BUILD_SECONDS, cwd=SOURCES)
        if done.returncode:
            why = " ".join(done.stderr.split())
            raise PorcupineError(f"the Porcupine checker could not be built: {why}")
        # Renamed into place, because another campaign may be running the old program.
        made.touch()
        made.replace(PROGRAM)
    return PROGRAM


def _run(command: Sequence[str], seconds: int, **options: Any) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, **options
        )
    except subprocess.TimeoutExpired as exc:
        raise PorcupineError(f"{command[0]} did not end within {seconds} s") from exc


def porcupine_reports(paths: Sequence[Path], *options: str) -> list[PorcupineReport]:
    """Return Porcupine's result for each history in ``paths``.

    It gets the reads of the latest state only, and is not asked about `unconfirmed_ids`.

    Raises:
        PorcupineError: The program cannot be built, or it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [_latest_only(path, Path(folder) / str(n)) for n, path in enumerate(paths)]
        command = [str(build()), "-json", *options, *map(str, given)]
        # The garbage collector must not occupy all processors while a round runs.
        one_processor = os.environ | {"GOMAXPROCS": "1"}
        done = _run(command, RUN_SECONDS, env=one_processor)
    if done.returncode not in {0, 1}:
        raise PorcupineError(f"the Porcupine checker failed: {done.stderr.strip()}")
    found = (PorcupineReport.read(json.loads(line)) for line in done.stdout.splitlines())
    return [_without_unconfirmed(one, path) for one, path in zip(found, paths, strict=True)]


def _without_unconfirmed(report: PorcupineReport, path: Path) -> PorcupineReport:
    """Remove the violations on ids about which nothing can be concluded."""
    if not report.violations:
        return report
    unconfirmed = unconfirmed_ids(History.load(path))
    violations = {id: why for id, why in report.violations.items() if id not in unconfirmed}
    if violations or not unconfirmed:
        return replace(report, violations=violations)
    verdict = "unknown" if report.undecided else "linearizable"
    return replace(report, violations={}, verdict=verdict)


def _latest_only(path: Path, copy: Path) -> Path:
    """Return the file to check: ``copy`` without other reads if the history has positions."""
    if b'"requirement"' not in path.read_bytes():
        return path
    latest_only(History.load(path)).save(copy)
    return copy


def disagreements(history: History, report: Report, theirs: PorcupineReport) -> Iterator[str]:
    """Compare both verdicts on each id; yield a line for each difference.

    Undecided ids do not count, and neither do checks that Porcupine does not make
    (tools/chaos/porcupine/README.md).
    """
    kinds: defaultdict[str, set[Kind]] = defaultdict(set)
    for one in (*report.violations, *report.undecided):
        kinds[one.id].add(one.kind)
    for id in theirs.violations:
        if id not in kinds:
            yield f"{id}: Porcupine finds a violation, the Python checker finds none"
    open_ids = {"", *theirs.violations, *theirs.undecided}
    suspects = {id: found for id, found in kinds.items() if id not in open_ids}
    if not suspects:
        return
    projection = Projection(history)
    for id, found in sorted(suspects.items()):
        # Without evidence from other ids of a batch, which Porcupine does not use.
        alone = linearize(projection.calls[id]).verdict
        if Kind.PHANTOM in found or alone is Verdict.NO:
            names = ", ".join(sorted(found))
            yield f"{id}: the Python checker finds {names}, Porcupine finds no violation"


def main() -> int:
    """Check histories with both checkers."""
    parser = argparse.ArgumentParser(prog="make porcupine", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("var/chaos")], metavar="PATH")
    paths = list(_histories(parser.parse_args().paths))
    if not paths:
        return _fail("no history found; run make chaos CHAOS_ARGS=--keep to keep histories")
    try:
        found = porcupine_reports(paths)
    except PorcupineError as exc:
        return _fail(str(exc))
    wrong = 0
    for path, theirs in zip(paths, found, strict=True):
        history = History.load(path)
        report = check(history)
        different = list(disagreements(history, report, theirs))
        wrong += bool(different or theirs.violations or not report.ok)
        verdict = "no violation" if report.ok else ", ".join(sorted(report.kinds))
        lines = [f"  DISAGREEMENT at id {line}" for line in different]
        sys.stdout.write(
            "\n".join([f"{path}: {theirs}", f"  Python checker: {verdict}", *lines]) + "\n"
        )
    return 1 if wrong else 0


def _histories(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.rglob("history.jsonl")) if path.is_dir() else [path]


def _fail(why: str) -> int:
    sys.stderr.write(f"error: {why}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
