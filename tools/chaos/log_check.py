"""Check of the logs of a round: which lines report a defect.

A background task that fails with an error of a store is expected only while an injected fault can
cause that error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tools.chaos.history import History, Mark

SECOND = 1_000_000_000

LATER = 10 * SECOND
"""Nanoseconds after the end of a fault in which it can still cause an error: a statement waits for
a connection and for its end (2 s and 4 s in a round), and its task is repeated after a pause."""

_DEFECT_MARKERS = ("internal error", "Traceback", "background task")
"""Texts in the log of unexpected errors; retried storage errors are none."""

_FULL = {"SQLite's disk is full", "SQLite's write fails", "PostgreSQL's disk is full"}
_FREEZES = {"server frozen", "clock jumps"}
"""Faults after which statements of the server are over their time limits."""
_STORES = ("PostgreSQL", "SQLite", "deliveries to PostgreSQL", "reads of")
"""Beginnings of the names of faults that make a store unavailable."""


class LogLine(NamedTuple):
    """Line of the log of a server."""

    at: int
    """Nanoseconds of ``time.monotonic_ns``, when it was read."""
    text: str


class Window(NamedTuple):
    """Time in which a fault can have effects, in nanoseconds of ``time.monotonic_ns``."""

    name: str
    begins: int
    ends: float


def defects(lines: Iterable[LogLine], history: History) -> list[str]:
    """Return the lines that report a defect."""
    windows = fault_windows(history)
    return [line.text for line in lines if _is_defect(line, windows)]


def fault_windows(history: History) -> list[Window]:
    """Return the windows of all faults, of those during phase changes, and of a takeover."""
    found = []
    for mark in history.marks:
        if mark.kind == "fault due":
            found.append(_window(history, mark, str(mark.facts["name"]), "fault ends", "number"))
        elif mark.kind == "tripped":
            name = {"cut": "PostgreSQL's connections: cut"}.get(mark.facts["how"])
            name = name or str(mark.facts["how"])
            found.append(_window(history, mark, name, "trip ends", "how"))
        elif mark.kind == "server frozen for a takeover":
            found.append(Window("server frozen", mark.at, mark.at + 60 * SECOND))
    return found


def _window(history: History, begun: Mark, name: str, kind: str, key: str) -> Window:
    """Return the window from a mark to the next mark of ``kind`` with the same fact ``key``."""
    ends = (
        mark.at
        for mark in history.marks
        if mark.kind == kind and mark.facts[key] == begun.facts[key] and mark.at >= begun.at
    )
    return Window(name, begun.at, min(ends, default=float("inf")) + LATER)


def _is_defect(line: LogLine, windows: list[Window]) -> bool:
    if "background task" in line.text and "Traceback" not in line.text:
        active = {window.name for window in windows if window.begins <= line.at <= window.ends}
        return not _explained(line.text, active)
    return any(words in line.text for words in _DEFECT_MARKERS)


def _explained(text: str, active: set[str]) -> bool:
    """Return whether one of the ``active`` faults can make a background task fail like this."""
    if "StorageFullError" in text:
        return not active.isdisjoint(_FULL)
    if "UnavailableError" in text:
        causes = (name for name in active if name in _FREEZES or _of_a_store(name))
        return any(causes)
    return False


def _of_a_store(name: str) -> bool:
    return name.startswith(_STORES) or "slow PostgreSQL" in name
