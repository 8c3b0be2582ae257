"""Verdict on a round, computed from the files in its folder, in a separate process."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.chaos.checker import Report, check
from tools.chaos.history import History, Mark, Outcome
from tools.chaos.porcupine_check import PorcupineError, disagreements, porcupine_reports
from tools.chaos.replication.figures import figures
from tools.chaos.replication.fleet import ASYNCHRONOUS
from tools.chaos.set_back_faults import DIRECTORY, ROWS
from tools.chaos.timeline import draw

SECOND = 1_000_000_000


def judge(folder: Path, *, porcupine: bool = False) -> dict[str, Any]:
    """Judge the round in ``folder``; write and return the verdict, and draw its timeline.

    With ``porcupine``, Porcupine checks the history as well; a disagreement counts as a failure.
    """
    history = History.load(folder / "history.jsonl")
    result: dict[str, Any] = json.loads((folder / "round.json").read_text())
    replication = result["plan"].get("replication", "")
    report = check(history, loses_writes=replication == ASYNCHRONOUS)
    if replication:
        result["cluster"] = figures(history)
    if porcupine and replication != ASYNCHRONOUS:
        result["porcupine"] = _check_with_porcupine(folder, history, report, result["wrong"])
    verdict = result | {
        "report": report.as_json(),
        "failed": bool(result["wrong"]) or not report.ok,
        "faults": _table(_faults(history)),
        "changes": _changes(history),
        # A takeover takes as long as a lease, so its unavailability is not a finding.
        "longest_unavailability": 0.0
        if result["plan"].get("takes_over")
        else longest_unavailability(history),
        "second_servers": _seconds(history),
        "backups": _backups(history),
    }
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2, default=str))
    (folder / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    draw(history, folder / "timeline.svg", title=f"seed {result['plan']['seed']}")
    return verdict


def _check_with_porcupine(
    folder: Path, history: History, report: Report, wrong: list[str]
) -> dict[str, Any]:
    """Return Porcupine's report on the round; append disagreements to ``wrong``."""
    try:
        (theirs,) = porcupine_reports([folder / "history.jsonl"])
    except PorcupineError as exc:
        wrong.append(f"PORCUPINE: {exc}")
        return {}
    different = list(disagreements(history, report, theirs))
    wrong += [f"DISAGREEMENT: {line}" for line in different]
    return theirs.as_json() | {"disagreements": different}


def longest_unavailability(history: History) -> float:
    """Return the longest time in seconds without an answered call while faults were active."""
    begins, context = _when(history, "round begins"), _when(history, "recovered")
    if begins is None or context is None:
        return 0.0
    answered = [
        one.end
        for one in history
        if one.end is not None
        and one.outcome in {Outcome.OK, Outcome.REFUSED}
        and one.kind != "Peek"  # Not a call to the service.
    ]
    times = sorted({begins, context, *(end for end in answered if begins <= end <= context)})
    longest = max((later - at for at, later in itertools.pairwise(times)), default=0)
    return longest / SECOND


def _when(history: History, kind: str) -> int | None:
    return next((mark.at for mark in history.marks if mark.kind == kind), None)


def _in_order(history: History) -> Iterator[tuple[str, Mark]]:
    """Yield the marks, each with the current phase."""
    phase = ""
    for mark in sorted(history.marks, key=lambda one: one.at):
        if mark.kind == "round begins":
            phase = phase or mark.facts["begins"]
        if mark.kind == "phase":
            phase = mark.facts["phase"]
        yield phase, mark


def _faults(history: History) -> Iterator[tuple[str, str]]:
    for phase, mark in _in_order(history):
        if _counts(mark):
            yield mark.facts["name"], phase
        elif mark.kind == "takeover":
            yield "a second server takes over" if mark.facts["serves"] else "no takeover", phase
        elif mark.kind == "tripped":
            yield f"while the phase changes: {mark.facts['how']}", phase
        elif mark.facts.get("did") in {"verify", "repair", "pause"} and "done" in mark.facts:
            yield mark.facts["did"], phase


def _counts(mark: Mark) -> bool:
    """Return whether a mark is a started fault or a completed set-back of PostgreSQL."""
    if mark.kind == "set back":
        return bool(mark.facts.get("name"))
    return mark.kind == "fault begins" and mark.facts["name"] not in {DIRECTORY, ROWS}


def _table(found: Iterator[tuple[str, str]]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for name, phase in found:
        row = table.setdefault(name, {})
        row[phase] = row.get(phase, 0) + 1
    return table


def _changes(history: History) -> dict[str, int]:
    """Count the completed changes of phase."""
    changes: Counter[str] = Counter()
    before = ""
    for _, mark in _in_order(history):
        if mark.kind == "phase":
            if before and mark.facts["phase"] != before:
                changes[f"{before} -> {mark.facts['phase']}"] += 1
            before = mark.facts["phase"]
    return dict(changes)


def _seconds(history: History) -> dict[str, int]:
    marks = [mark for mark in history.marks if mark.kind == "second server"]
    return dict(Counter("served" if mark.facts["served"] else "refused" for mark in marks))


def _backups(history: History) -> dict[str, int]:
    marks = [mark for mark in history.marks if mark.kind == "backup"]
    return dict(Counter("refused" if mark.facts["status"] else "made" for mark in marks))
