"""Order of messages with equal timestamps: by sequence, the order of first storage.

A sequence belongs to one life of an id: from its first save to its deletion, however often it is
replaced meanwhile. Checked without a search:

- no two messages have the same sequence, and a life has one; the creation time identifies it;
- a message whose first save began after that of another was acknowledged has the greater sequence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tools.chaos.history import History, Operation, Outcome
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind, Violation, violation

Place = tuple[int, int]
"""Timestamp and sequence."""


class _Birth(NamedTuple):
    """The acknowledged save that stored a message first."""

    sequence: int
    id: str
    operation: Operation


class Sequences:
    """What the answers of a history say about sequences."""

    def __init__(self, history: History, written: Iterable[tuple[Operation, Value]]) -> None:
        """Read ``history``; ``written`` are all values with the operations that write them."""
        self._history = history
        self._shown = [
            (Shown(*item), operation)
            for operation in history
            for item in operation.answer.get("items", ())
        ]
        attempts: Counter[tuple[str, str]] = Counter()
        for operation, value in written:
            attempts[value.id, value.digest] += operation.args.get("tries", 1)
        seen: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for item, _ in self._shown:
            seen[item.id, item.digest].add(item.sequence)
        self._known = {
            key: next(iter(sequences))
            for key, sequences in seen.items()
            if attempts[key] == 1 and len(sequences) == 1 and 0 not in sequences
        }

    def of(self, value: Value) -> int | None:
        """Return the only sequence that the value can have had; None if it is not certain.

        It is certain for a value that one attempt wrote, and that an answer has shown.
        """
        return self._known.get((value.id, value.digest))

    def violations(self) -> Iterator[Violation]:
        """Return what contradicts the rules."""
        yield from self._shared()
        yield from self._disordered()

    def _shared(self) -> Iterator[Violation]:
        owners: dict[int, tuple[str, int | None, Operation]] = {}
        lives: dict[tuple[str, int | None], tuple[int, Operation]] = {}
        for item, operation in self._shown:
            if not item.sequence:
                continue
            id, created, other = owners.setdefault(
                item.sequence, (item.id, item.created, operation)
            )
            if (id, created) != (item.id, item.created):
                what = f"sequence {item.sequence} is that of {id} as well"
                yield self._violation(item.id, what, other, operation)
                return
            sequence, other = lives.setdefault((item.id, item.created), (item.sequence, operation))
            if item.created is not None and sequence != item.sequence:
                what = f"the sequence has changed from {sequence} to {item.sequence}"
                yield self._violation(item.id, what, other, operation)
                return

    def _disordered(self) -> Iterator[Violation]:
        """Report the first message that has a greater sequence than one stored after it."""
        earliest: _Birth | None = None
        for birth in sorted(self._births(), key=lambda one: one.sequence, reverse=True):
            if earliest is not None and (earliest.operation.end or 0) < birth.operation.start:
                what = (
                    f"sequence {birth.sequence} is lower than that of {earliest.id}, stored before"
                )
                yield self._violation(birth.id, what, earliest.operation, birth.operation)
                return
            ended = birth.operation.end or 0
            if earliest is None or ended < (earliest.operation.end or 0):
                earliest = birth

    def _births(self) -> Iterator[_Birth]:
        sequences = {
            (item.id, item.revision): item.sequence for item, _ in self._shown if item.sequence
        }
        for operation in self._history:
            once = operation.args.get("tries", 1) == 1
            if operation.kind != "Save" or operation.outcome is not Outcome.OK or not once:
                continue
            id, revision = operation.args["value"]["id"], operation.answer["revision"]
            if operation.answer.get("created") and (id, revision) in sequences:
                yield _Birth(sequences[id, revision], id, operation)

    def _violation(self, id: str, what: str, *operations: Operation) -> Violation:
        return violation(self._history, Kind.WRONG_ORDER, id, what, list(operations))
