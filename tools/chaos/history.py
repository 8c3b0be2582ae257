"""History of a round: what clients called, and what happened to the service meanwhile.

Each attempt of a call is one operation. It begins before anything is sent and ends when the answer
has arrived, on one monotonic clock. Any task or thread can append to a `History`; it is saved as
JSON Lines and checked by `tools.chaos.checker`. Arguments and answers of each kind of operation are
described in docs/explanation/history-checker.md.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

FORMAT = 2
"""Positions are timestamps and sequences; in format 1 they were timestamps and ids."""


class Outcome(StrEnum):
    """Outcome of an operation."""

    OPEN = "open"
    """No answer yet; the checker treats it as unknown."""
    OK = "ok"
    REFUSED = "refused"
    """Certainly without effect; the refusal itself contains information about the state."""
    UNKNOWN = "unknown"
    """The call may have taken effect, may take effect later, or never."""


@dataclass
class Operation:
    """One attempt of one call. Times are nanoseconds of ``time.monotonic_ns``."""

    number: int
    client: int
    kind: str
    args: Mapping[str, Any]
    start: int
    end: int | None = None
    outcome: Outcome = Outcome.OPEN
    answer: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    reason: str = ""
    _clock: Callable[[], int] = field(default=time.monotonic_ns, repr=False, compare=False)

    def ok(self, answer: Mapping[str, Any] | None = None) -> None:
        """Record the answer."""
        self._close(Outcome.OK, answer or {})

    def refused(self, code: str, reason: str = "", answer: Mapping[str, Any] | None = None) -> None:
        """Record a refusal that certainly changed nothing."""
        self.code, self.reason = code, reason
        self._close(Outcome.REFUSED, answer or {})

    def unknown(
        self, code: str, answer: Mapping[str, Any] | None = None, *, reason: str = ""
    ) -> None:
        """Record an unknown outcome; ``answer`` contains the part of a stream received so far."""
        self.code, self.reason = code, reason
        self._close(Outcome.UNKNOWN, answer or {})

    @property
    def closed(self) -> bool:
        """Whether the operation has ended."""
        return self.outcome is not Outcome.OPEN

    def _close(self, outcome: Outcome, answer: Mapping[str, Any]) -> None:
        if self.closed:
            raise ValueError(f"operation {self.number} has already ended: {self.outcome}")
        self.end = self._clock()
        self.answer = answer
        self.outcome = outcome

    def as_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "op": self.number,
            "client": self.client,
            "kind": self.kind,
            "args": dict(self.args),
            "start": self.start,
            "end": self.end,
            "outcome": str(self.outcome),
        }
        said = {"answer": dict(self.answer), "code": self.code, "reason": self.reason}
        return record | {name: value for name, value in said.items() if value}


@dataclass(frozen=True)
class Mark:
    """Event besides the calls: a fault began, a phase changed."""

    kind: str
    at: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"mark": self.kind, "at": self.at, "facts": dict(self.facts)}


class History:
    """Operations and marks, ordered by their start."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Create an empty history; ``clock`` returns nanoseconds that never decrease."""
        self.operations: list[Operation] = []
        self.marks: list[Mark] = []
        self._clock = clock
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def begin(self, client: int, kind: str, args: Mapping[str, Any]) -> Operation:
        """Record the start of a call, before anything is sent."""
        with self._lock:
            operation = Operation(
                len(self.operations), client, kind, args, self._clock(), _clock=self._clock
            )
            self.operations.append(operation)
        return operation

    def mark(self, kind: str, **facts: Any) -> Mark:
        """Record an event that is not a call."""
        with self._lock:
            mark = Mark(kind, self._clock(), facts)
            self.marks.append(mark)
        return mark

    def mark_set_back(self, *, ends: bool, how: str, name: str = "") -> Mark:
        """Record that PostgreSQL is being set back, or (``ends``) that this is over.

        ``name`` is that of the fault, "" if it did not restore anything.
        """
        return self.mark("set back", ends=ends, how=how, name=name)

    def add(self, record: Operation | Mark) -> None:
        """Append a record that already has its times, as generated histories do."""
        with self._lock:
            if isinstance(record, Mark):
                self.marks.append(record)
            else:
                self.operations.append(record)

    def save(self, path: Path) -> None:
        """Write the history as JSON Lines, replacing the file."""
        with self._lock:
            records = [one.as_json() for one in self.operations]
            records += [mark.as_json() for mark in self.marks]
        with path.open("w", encoding="utf-8") as file:
            for record in ({"history": FORMAT}, *records):
                file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """Read a file written by `save`.

        Raises:
            ValueError: The file is not a history.
        """
        history = cls()
        with path.open(encoding="utf-8") as file:
            if json.loads(next(file, "null")) != {"history": FORMAT}:
                raise ValueError(f"{path} is not a history of format {FORMAT}")
            for line in file:
                history.add(_read(json.loads(line)))
        return history


def _read(record: dict[str, Any]) -> Operation | Mark:
    if "mark" in record:
        return Mark(record["mark"], record["at"], record["facts"])
    return Operation(
        record["op"],
        record["client"],
        record["kind"],
        record["args"],
        record["start"],
        record["end"],
        Outcome(record["outcome"]),
        record.get("answer", {}),
        record.get("code", ""),
        record.get("reason", ""),
    )
