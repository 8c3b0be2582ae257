"""Check of the logs of a round: an error of a store is accepted only while a fault explains it."""

from __future__ import annotations

import pytest

from tools.chaos.faults import FAULTS
from tools.chaos.history import History
from tools.chaos.log_check import LATER, SECOND, LogLine, defects

FULL = "background task sqlite-checkpointer failed: StorageFullError: the disk is full"
DOWN = "background task lease failed: UnavailableError: PostgreSQL is unavailable"


class Clock:
    now = 100 * SECOND

    def __call__(self) -> int:
        return self.now


def history_with(fault: str, seconds: int = 2) -> History:
    """Return the history of a round with a fault from second 100 on."""
    clock = Clock()
    history = History(clock)
    history.mark("fault due", name=fault, number=1)
    clock.now += seconds * SECOND
    history.mark("fault ends", name=fault, number=1)
    return history


def accepted(text: str, at: int, history: History) -> bool:
    return defects([LogLine(at, text)], history) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (FULL, "SQLite's disk is full"),
        (FULL, "PostgreSQL's disk is full"),
        (DOWN, "PostgreSQL killed"),
        (DOWN, "PostgreSQL's connections: silent"),
        (DOWN, "server frozen"),
    ],
)
def test_error_of_a_store_is_accepted_during_its_fault_only(text: str, fault: str) -> None:
    assert fault in FAULTS
    history = history_with(fault)
    assert accepted(text, 101 * SECOND, history)
    assert accepted(text, 102 * SECOND + LATER, history)
    assert not accepted(text, 99 * SECOND, history)
    assert not accepted(text, 103 * SECOND + LATER, history)
    assert not accepted(f"{text}\nTraceback", 101 * SECOND, history)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (FULL, "PostgreSQL killed"),
        (DOWN, "clients: cut"),
        (DOWN, "server killed"),
        (DOWN, "a backup"),
        ("background task lease failed: KeyError", "PostgreSQL killed"),
        ("internal error", "PostgreSQL killed"),
        ("Traceback (most recent call last):", "SQLite's disk is full"),
    ],
)
def test_error_that_its_fault_does_not_explain_is_a_defect(text: str, fault: str) -> None:
    assert fault in FAULTS
    assert not accepted(text, 101 * SECOND, history_with(fault))


def test_fault_at_a_phase_change_explains_an_error() -> None:
    clock = Clock()
    history = History(clock)
    history.mark("tripped", how="cut")
    history.mark("trip ends", how="cut")
    assert accepted(DOWN, 101 * SECOND, history)
    assert not accepted(DOWN, 101 * SECOND + LATER, history)


def test_other_lines_are_no_defects() -> None:
    assert accepted('{"event": "serving"}', 0, History())
