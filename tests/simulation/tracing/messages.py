"""What a round did to messages alone, as the specification knows no sessions and no files.

Sessions and files have revisions of their own, in the same sequence as those of messages. A
trace numbers the revisions of messages anew, without gaps, and leaves out steps that concern only
sessions or files. The order of the others, and what they do, stays the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tests.simulation.tracing.trace import Event

_NUMBERS = {
    "commit": ("revision",),
    "target_write": ("revision",),
    "unchanged": ("revision",),
    "requeue": ("revision",),
    "committed": ("revision",),
    "ack": ("revision",),
    "snapshot": ("row",),
    "answer": ("row",),
    "state": ("base",),
    "prune": ("upto",),
    "journal": ("after", "upto"),
    "set_phase": ("applied",),
    "apply": ("applied",),
    "renew": ("applied",),
    "inspect": ("applied",),
    "applied": ("applied",),
    "set_back": ("applied",),
}
"""Fields that are revisions, by kind of event."""

_OF_MESSAGES = ("commit", "target_write", "unchanged", "requeue")


def messages_only(events: Sequence[Event]) -> list[Event]:
    """Return a trace with the revisions of messages alone; ``events`` are changed."""
    number = _numbering(events)
    steps = _Steps(number)
    return [_renumbered(event, number) for event in events if steps.concerns_messages(event)]


def _numbering(events: Sequence[Event]) -> Callable[[int], int]:
    """Return the function from a revision to its number among those of messages."""
    first: int = events[0]["revision"]
    taken = sorted({revision for revision in _revisions(events) if revision > first})
    return lambda revision: (
        revision if revision <= first else first + bisect.bisect_right(taken, revision)
    )


def _revisions(events: Iterable[Event]) -> Iterator[int]:
    for event in events:
        if event["event"] in _OF_MESSAGES:
            yield event["revision"]
        for rows in (event.get("row"), event.get("tomb")):
            if isinstance(rows, dict):
                yield from rows.values()


class _Steps:
    """Finds the steps that concern messages."""

    def __init__(self, number: Callable[[int], int]) -> None:
        self._number = number
        self._applied = 0

    def concerns_messages(self, event: Event) -> bool:
        match event["event"]:
            case "journal" | "prune":
                return bool(event.pop("messages"))
            case "apply":
                return bool(event["rows"])
            case "applied":
                before, self._applied = self._applied, event["applied"]
                # Left out if only revisions of sessions and files were added.
                same = self._number(before) == self._number(event["applied"])
                return before == event["applied"] or not same
            case "inspect" | "set_phase":
                self._applied = event["applied"]
        return True


def _renumbered(event: Event, number: Callable[[int], int]) -> Event:
    for name in _NUMBERS.get(event["event"], ()):
        event[name] = number(event[name])
    rows: Any = event.get("rows")
    if isinstance(rows, list):
        event["rows"] = [
            {"id": row["id"], "row": number(row["row"]), "tomb": number(row["tomb"])}
            for row in rows
        ]
    if event["event"] == "set_back":
        for name in ("row", "tomb"):
            event[name] = {key: number(value) for key, value in event[name].items()}
    return event
