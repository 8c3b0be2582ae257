"""Range reads: pages of lists and searches, and exports; what they contain and should contain."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.chaos.history import Operation, Outcome
from tools.chaos.register_model import Action
from tools.chaos.sequence_order import Place, Sequences
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind

if TYPE_CHECKING:
    from tools.chaos.projection import Projection


class Question(NamedTuple):
    """Conditions of a list or search; None: no condition."""

    session: str | None = None
    tag: str | None = None
    word: str | None = None

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Question:
        """Return the conditions of an operation."""
        return cls(args.get("session"), args.get("tag"), args.get("word"))

    def holds(self, value: Value) -> bool:
        """Return whether a value meets all conditions."""
        return (
            self.session in {None, value.session}
            and (self.tag is None or self.tag in value.tags)
            and (self.word is None or self.word in value.words)
        )


class Scans:
    """Adds lists, searches and exports to a projection."""

    def __init__(self, projection: Projection, sequences: Sequences) -> None:
        """Prepare for the values that the history writes, with their sequences."""
        self._to = projection
        self._sequences = sequences
        self._ids = sorted(projection.values)
        self._index: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for id, values in projection.values.items():
            for value in values.values():
                for key in _keys_of(value):
                    self._index[key].add(id)
        self._exports: dict[int, tuple[int, set[str]]] = {}
        """Start of each export, and the ids that it has returned so far."""

    # ------------------------------------------------------------------ lists and searches

    def page(self, operation: Operation) -> None:
        """Process one page, which is a separate read."""
        if operation.outcome is not Outcome.OK:
            return
        items = [Shown(*item) for item in operation.answer["items"]]
        question = Question.of(operation.args)
        order = operation.args["order"]
        if order != "RELEVANCE":
            self._in_order(operation, items, falling=order == "NEWEST")
        for item in items:
            self._to.found(operation, item, question)
        range_ = _range_of(operation, items)
        if range_ is not None:
            self._missing_from_page(operation, question, {item.id for item in items}, range_)

    def _in_order(self, operation: Operation, items: Sequence[Shown], *, falling: bool) -> None:
        named = [(item.place, item.id) for item in items]
        if (after := operation.args.get("after")) is not None:
            named.insert(0, (_place(after), "the page before"))
        for (one, former), (other, id) in itertools.pairwise(named):
            if not (one > other if falling else one < other):
                self._to.report(Kind.WRONG_ORDER, operation, f"{former} precedes {id}", id)
                return

    def _missing_from_page(
        self, operation: Operation, question: Question, shown: set[str], range_: _Range
    ) -> None:
        named = (("session", question.session), ("tag", question.tag), ("word", question.word))
        groups = [self._index[name, value] for name, value in named if value is not None]
        for id in sorted(set.intersection(*groups) - shown if groups else set()):
            belongs = frozenset(
                value.digest
                for value in self._to.values[id].values()
                if question.holds(value)
                and range_.holds(value.timestamp, self._sequences.of(value))
            )
            if belongs:
                self._to.observe(operation, id, Action.OUTSIDE, among=belongs)

    # ------------------------------------------------------------------ exports

    def export(self, operation: Operation) -> None:
        """Process the messages from one stream of an export."""
        number, after = operation.args["export"], operation.args.get("after") or 0
        since, seen = self._exports.setdefault(number, (operation.start, set()))
        items = [Shown(*item) for item in operation.answer.get("items", ())]
        order = [after, *(item.sequence for item in items)]
        if any(not one < other for one, other in itertools.pairwise(order)):
            self._to.report(Kind.WRONG_ORDER, operation, "the export is not ordered by sequence")
        for item in items:
            if item.id in seen:
                self._to.report(
                    Kind.EXPORT_TWICE, operation, "the export contains the message twice", item.id
                )
            seen.add(item.id)
            self._to.found(operation, item, None)
        if operation.outcome is Outcome.OK:
            self._missing_from_export(operation, since, seen)
        elif items:
            self._missing_before(operation, since, seen, range(after + 1, items[-1].sequence))

    def _missing_from_export(self, operation: Operation, since: int, seen: set[str]) -> None:
        for id in self._ids:
            if id not in seen:
                every = frozenset(self._to.values[id])
                self._to.observe(operation, id, Action.OUTSIDE, among=every, since=since)

    def _missing_before(
        self, operation: Operation, since: int, seen: set[str], passed: range
    ) -> None:
        """Look for messages that a broken stream has passed."""
        for id in self._ids:
            if id not in seen:
                belongs = frozenset(
                    value.digest
                    for value in self._to.values[id].values()
                    if (self._sequences.of(value) or 0) in passed
                )
                if belongs:
                    self._to.observe(operation, id, Action.OUTSIDE, among=belongs, since=since)


class _Range(NamedTuple):
    """Range of an order that a page covers, ends included."""

    low: Place | None
    high: Place | None
    but: Place | None
    """Last place of the previous page, which is excluded."""

    def holds(self, timestamp: int, sequence: int | None) -> bool:
        """Return whether a message is certainly in the range.

        If its sequence is unknown, it may be on either side of one with an equal timestamp.
        """
        if sequence is None:
            return (self.low is None or self.low[0] < timestamp) and (
                self.high is None or timestamp < self.high[0]
            )
        place = timestamp, sequence
        return (
            (self.low is None or self.low <= place)
            and (self.high is None or place <= self.high)
            and place != self.but
        )


def _range_of(operation: Operation, items: Sequence[Shown]) -> _Range | None:
    """Return the range of a page; None if its position among the pages is unknown."""
    after, more = operation.args.get("after"), operation.answer.get("more", False)
    if operation.args["order"] == "RELEVANCE":
        return None if after or more else _Range(None, None, None)
    if more and not items:
        return None
    begin = None if after is None else _place(after)
    end = items[-1].place if more else None
    if operation.args["order"] == "NEWEST":
        return _Range(end, begin, begin)
    return _Range(begin, end, begin)


def _place(after: Sequence[Any]) -> Place:
    return after[0], after[1]


def _keys_of(value: Value) -> set[tuple[str, str]]:
    keys = {("tag", tag) for tag in value.tags} | {("word", word) for word in value.words}
    return keys if value.session is None else keys | {("session", value.session)}
