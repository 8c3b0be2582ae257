"""Positions: reads that require a position, and revisions across promotions.

A position is a place in the write-ahead log. Three rules are checked without a search:

- an answer that requires position P shows every write, and every state, that another answer with a
  position at or before P has told of; a client that requires its own highest position therefore
  reads its writes, and never goes back;
- the position of such an answer is not before P;
- after a promotion, no revision is given out a second time, not even to another message.

Reads that require a position or any replica need not show the latest state, but only one that was
once valid; that is part of the search (`projection`). They show nothing that was not written yet.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sagastore_server.interfaces.consistency import WalPosition, decoded
from tools.chaos.history import History, Operation, Outcome
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind, Violation, violation

WEAK = frozenset({"at_least", "any_replica"})
"""Requirements that an older state than the latest can meet."""

CANCELLING, CANCELLED = "commits are cancelled", "commits were cancelled"
"""Marks of the time in which commits that wait for a standby are cancelled. PostgreSQL then shows
them, and a failover loses them. They must not be acknowledged."""

Place = tuple[int, int]
"""Timeline and LSN: the order of the positions of one cluster."""


def is_weak(operation: Operation) -> bool:
    """Return whether a read may show an older state than the latest."""
    return operation.args.get("requirement") in WEAK


def place_of(text: str) -> Place | None:
    """Return the place of a position; None for "", which servers without positions tell."""
    return None if not text else _order(decoded(text))


def _order(position: WalPosition) -> Place:
    return position.timeline, position.lsn


@dataclass
class _Id:
    """What answers with positions have told of one id."""

    told: list[tuple[Place, int, Operation]] = field(default_factory=list)
    """Revisions with positions at which they were certainly stored, or replaced by later ones."""
    deletes: list[Operation] = field(default_factory=list)
    """Deletions that may have taken effect."""
    first_ends: dict[int, int] = field(default_factory=dict)
    """By revision: when it was first known to be stored."""
    written: dict[str, int] = field(default_factory=dict)
    """By digest of a value: start of the first operation that wrote it."""
    sessions: set[str | None] = field(default_factory=set)
    """Sessions of all values that were sent."""

    def latest(self, place: Place) -> tuple[int, Operation] | None:
        """Return the highest revision shown with a position at or before ``place``."""
        end = bisect.bisect_right(self.told, place, key=lambda one: one[0])
        _, revision, operation = max(
            self.told[:end], key=lambda one: one[1], default=(None, 0, None)
        )
        return None if operation is None else (revision, operation)


def violations_of_positions(history: History) -> Iterator[Violation]:
    """Return the first contradiction of each id and each kind."""
    judge, unconfirmed = _Positions(history), unconfirmed_ids(history)
    yield from (one for one in judge.violations() if one.id not in unconfirmed)
    if any(mark.kind == "promoted" for mark in history.marks):
        yield from _repeated_revisions(history)


class _Positions:
    def __init__(self, history: History) -> None:
        self._history = history
        self._ids: defaultdict[str, _Id] = defaultdict(_Id)
        for operation in history:
            self._note(operation)
        for one in self._ids.values():
            one.told.sort(key=lambda told: told[0])

    def _note(self, operation: Operation) -> None:
        args = operation.args
        for record in args.get("values", [args["value"]] if "value" in args else []):
            value = Value.read(record)
            self._ids[value.id].sessions.add(value.session)
            self._ids[value.id].written.setdefault(value.digest, operation.start)
        if operation.kind == "Delete" and _may_have_taken_effect(operation):
            self._ids[args["id"]].deletes.append(operation)
        place = place_of(operation.answer.get("position", ""))
        for id, revision in revisions_in(operation):
            one = self._ids[id]
            end = operation.start if operation.end is None else operation.end
            one.first_ends[revision] = min(end, one.first_ends.get(revision, end))
            if place is not None:
                one.told.append((place, revision, operation))

    def violations(self) -> Iterator[Violation]:
        reported: set[str] = set()
        for operation in filter(is_weak, self._history):
            yield from self._from_the_future(operation)
            if operation.args["requirement"] != "at_least":
                continue
            if operation.outcome is Outcome.UNKNOWN or not operation.closed:
                continue
            for id, what, proof in self._contradictions(operation):
                if id not in reported:
                    reported.add(id)
                    yield violation(
                        self._history, Kind.STALE_POSITION, id, what, [*proof, operation]
                    )

    def _from_the_future(self, operation: Operation) -> Iterator[Violation]:
        for item in operation.answer.get("items", ()):
            shown = Shown(*item)
            written = self._ids[shown.id].written.get(shown.digest, 0)
            if operation.end is not None and written > operation.end:
                what = "the value was returned before it was written"
                yield violation(self._history, Kind.PHANTOM, shown.id, what, [operation])

    def _contradictions(
        self, operation: Operation
    ) -> Iterator[tuple[str, str, tuple[Operation, ...]]]:
        """Return id, explanation and proof of each wrong statement of an answer."""
        required = place_of(operation.args.get("position", ""))
        if required is None:
            return
        said = place_of(operation.answer.get("position", ""))
        if said is not None and said < required:
            yield "", f"the answer is of position {said}, before the required {required}", ()
        found = dict(revisions_in(operation))
        for id, revision in found.items():
            yield from self._stale(id, revision, required)
        for id in self._absences(operation, found):
            yield from self._missing(id, required)

    def _stale(
        self, id: str, revision: int, required: Place
    ) -> Iterator[tuple[str, str, tuple[Operation, ...]]]:
        one = self._ids[id]
        latest = one.latest(required)
        if latest is not None and revision < latest[0]:
            what = f"revision {revision}, although the required position has {latest[0]}"
            yield id, what, (latest[1],)
        for delete in one.deletes:
            place = place_of(delete.answer.get("position", ""))
            covered = place is not None and place <= required
            if covered and one.first_ends[revision] < delete.start:
                what = f"revision {revision}, which was deleted before the required position"
                yield id, what, (delete,)

    def _missing(
        self, id: str, required: Place
    ) -> Iterator[tuple[str, str, tuple[Operation, ...]]]:
        one = self._ids[id]
        latest = one.latest(required)
        if latest is None or any(_may_follow(delete, latest[1]) for delete in one.deletes):
            return
        what = f"nothing, although the required position has revision {latest[0]}"
        yield id, what, (latest[1],)

    def _absences(self, operation: Operation, found: Mapping[str, int]) -> Iterable[str]:
        """Return the ids that an answer says do not exist."""
        if operation.outcome is Outcome.REFUSED:
            return [operation.args["id"]] if operation.code == "NOT_FOUND" else []
        if operation.kind == "List":
            return self._absent_from(operation, found)
        missing: Iterable[str] = operation.answer.get("missing", ())
        return missing

    def _absent_from(self, operation: Operation, found: Mapping[str, int]) -> list[str]:
        """Return the ids that a complete list of a session lacks, of those that never leave it."""
        if operation.answer.get("more") or operation.args.get("after"):
            return []
        session = operation.args["session"]
        return [
            id for id, one in self._ids.items() if one.sessions == {session} and id not in found
        ]


def revisions_in(operation: Operation) -> Iterator[tuple[str, int]]:
    """Return the ids and revisions that an answer says are stored."""
    if operation.outcome is Outcome.OK and operation.kind == "Save":
        yield operation.args["value"]["id"], operation.answer["revision"]
    for item in operation.answer.get("items", ()):
        shown = Shown(*item)
        yield shown.id, shown.revision


def _may_have_taken_effect(delete: Operation) -> bool:
    return delete.outcome is not Outcome.REFUSED or delete.args.get("tries", 1) > 1


def _may_follow(delete: Operation, told: Operation) -> bool:
    """Return whether a deletion may have taken effect after the state of an answer."""
    once = delete.outcome is Outcome.OK and delete.args.get("tries", 1) == 1
    return not once or delete.end is None or delete.end > told.start


def _repeated_revisions(history: History) -> Iterator[Violation]:
    """Report the first revision that two messages have."""
    owners: dict[int, tuple[str, Operation]] = {}
    for operation in history:
        for id, revision in revisions_in(operation):
            owner, other = owners.setdefault(revision, (id, operation))
            if owner != id:
                what = f"revision {revision} is that of {owner} as well"
                yield violation(history, Kind.REVISION_REUSED, id, what, [other, operation])
                return


def unconfirmed_ids(history: History) -> set[str]:
    """Return the ids with a write whose commit may have been seen and then lost.

    Such a write was not acknowledged while commits were cancelled (`CANCELLING`). Reads may show
    its value for a while, so nothing can be concluded from them.
    """
    windows = list(_windows(history))
    found: set[str] = set()
    for operation in history:
        if windows and operation.kind in {"Save", "Delete", "BulkSave"}:
            tries = operation.args.get("tries", 1)
            if (operation.outcome is Outcome.UNKNOWN or tries > 1) and any(
                operation.start <= ends and (operation.end or ends) >= begins
                for begins, ends in windows
            ):
                found |= _ids_of(operation.args)
    return found


def latest_only(history: History) -> History:
    """Return a history without the reads that may show an older state than the latest."""
    kept = History()
    for operation in history:
        if not is_weak(operation):
            kept.add(replace(operation, number=len(kept)))
    for mark in history.marks:
        kept.add(mark)
    return kept


def _windows(history: History) -> Iterator[tuple[int, int]]:
    begins = [mark.at for mark in history.marks if mark.kind == CANCELLING]
    ends = [mark.at for mark in history.marks if mark.kind == CANCELLED]
    last = max((mark.at for mark in history.marks), default=0)
    return ((at, min((end for end in ends if end > at), default=last)) for at in begins)


def _ids_of(args: Mapping[str, Any]) -> set[str]:
    if "id" in args:
        return {args["id"]}
    return {value["id"] for value in args.get("values", [args["value"]] if "value" in args else [])}


def requirements(history: History) -> dict[str, dict[str, Any]]:
    """Return the number of answered reads of each requirement."""
    counts: dict[str, dict[str, Any]] = {}
    for operation in history:
        name = operation.args.get("requirement")
        if name is not None:
            one = counts.setdefault(name, {"answered": 0, "failed": 0})
            answered = operation.outcome in {Outcome.OK, Outcome.REFUSED}
            one["answered" if answered else "failed"] += 1
    return counts
