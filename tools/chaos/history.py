"""What clients did to a service, and what was done to it meanwhile.

Every attempt of a call is one operation: it begins before anything is sent, and ends when
the answer is there, on one monotonic clock. A `History` is appended to from any task or
thread, saved as JSON Lines, and judged by `tools.chaos.checker`. What the kinds of
operations have as arguments and answers is said in docs/explanation/history-checker.md.
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

FORMAT = 1


class Outcome(StrEnum):
    """What is known of an operation's end."""

    OPEN = "open"
    """No answer yet; to a checker the same as unknown."""
    OK = "ok"
    REFUSED = "refused"
    """Definitely without effect, and the refusal itself tells of the state."""
    UNKNOWN = "unknown"
    """It may have had its effect, may still have it later, or never."""


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
        """Take down the answer, now."""
        self._close(Outcome.OK, answer or {})

    def refused(self, code: str, reason: str = "", answer: Mapping[str, Any] | None = None) -> None:
        """Take down a refusal that has changed nothing, for certain."""
        self.code, self.reason = code, reason
        self._close(Outcome.REFUSED, answer or {})

    def unknown(
        self, code: str, answer: Mapping[str, Any] | None = None, *, reason: str = ""
    ) -> None:
        """Take down that nobody knows; ``answer`` is what had come of a stream by then."""
        self.code, self.reason = code, reason
        self._close(Outcome.UNKNOWN, answer or {})

    @property
    def closed(self) -> bool:
        """Whether its end was taken down."""
        return self.outcome is not Outcome.OPEN

    def _close(self, outcome: Outcome, answer: Mapping[str, Any]) -> None:
        if self.closed:
            raise ValueError(f"operation {self.number} has ended already: {self.outcome}")
        self.end = self._clock()
        self.answer = answer
        self.outcome = outcome

    def as_json(self) -> dict[str, Any]:
        """Return it as it is saved."""
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
    """Something that happened beside the calls: a fault began, a phase changed."""

    kind: str
    at: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as it is saved."""
        return {"mark": self.kind, "at": self.at, "facts": dict(self.facts)}


class History:
    """Operations and marks, in the order in which they began."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin with nothing; ``clock`` gives nanoseconds that never go back."""
        self.operations: list[Operation] = []
        self.marks: list[Mark] = []
        self._clock = clock
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Operation]:
        """Go through the operations."""
        return iter(self.operations)

    def __len__(self) -> int:
        """Return how many operations there are."""
        return len(self.operations)

    def begin(self, client: int, kind: str, args: Mapping[str, Any]) -> Operation:
        """Take down that a client is about to send something."""
        with self._lock:
            operation = Operation(
                len(self.operations), client, kind, args, self._clock(), _clock=self._clock
            )
            self.operations.append(operation)
        return operation

    def mark(self, kind: str, **facts: Any) -> Mark:
        """Take down something that is no call."""
        with self._lock:
            mark = Mark(kind, self._clock(), facts)
            self.marks.append(mark)
        return mark

    def add(self, record: Operation | Mark) -> None:
        """Append what has its times already, as those who make up histories do."""
        with self._lock:
            if isinstance(record, Mark):
                self.marks.append(record)
            else:
                self.operations.append(record)

    def save(self, path: Path) -> None:
        """Write it as JSON Lines, replacing what is there."""
        with self._lock:
            records = [one.as_json() for one in self.operations]
            records += [mark.as_json() for mark in self.marks]
        with path.open("w", encoding="utf-8") as file:
            for record in ({"history": FORMAT}, *records):
                file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what `save` wrote.

        Raises:
            ValueError: It is something else.

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
