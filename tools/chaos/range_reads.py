"""Range reads: pages of lists and searches, and exports; what they contain and should contain."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.chaos.history import Operation, Outcome
from tools.chaos.register_model import Action
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind

if TYPE_CHECKING:
    from tools.chaos.projection import Projection

Place = tuple[int, bytes]


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

    def __init__(self, projection: Projection) -> None:
        """Prepare for the values that the history writes."""
        self._to = projection
        self._ids = sorted(projection.values, key=str.encode)
        self._keys = [id.encode() for id in self._ids]
        self._index: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for id, values in projection.values.items():
            for value in values.values():
                for key in _keys_of(value):
                    self._index[key].add(id)
        self._exports: dict[int, tuple[int, set[str]]] = {}
        """Start of each export, and the ids it has returned so far."""

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
        places = [item.place for item in items]
        if (after := operation.args.get("after")) is not None:
            places.insert(0, _place(after))
        for one, other in itertools.pairwise(places):
            if not (one > other if falling else one < other):
                what = f"{one[1].decode()} precedes {other[1].decode()}"
                self._to.report(Kind.WRONG_ORDER, operation, what, other[1].decode())
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
                if question.holds(value) and range_.holds(value.place)
            )
            if belongs:
                self._to.observe(operation, id, Action.OUTSIDE, among=belongs)

    # ------------------------------------------------------------------ exports

    def export(self, operation: Operation) -> None:
        """Process the messages from one stream of an export."""
        number, after = operation.args["export"], operation.args.get("after") or ""
        since, seen = self._exports.setdefault(number, (operation.start, set()))
        items = [Shown(*item) for item in operation.answer.get("items", ())]
        ids = [item.id.encode() for item in items]
        if any(not one < other for one, other in itertools.pairwise([after.encode(), *ids])):
            self._to.report(Kind.WRONG_ORDER, operation, "the export is not ordered by id")
        for item in items:
            if item.id in seen:
                self._to.report(
                    Kind.EXPORT_TWICE, operation, "the export contains the message twice", item.id
                )
            seen.add(item.id)
            self._to.found(operation, item, None)
        done = operation.outcome is Outcome.OK
        if done or items:
            self._missing_from_export(operation, since, after, None if done else items[-1].id)

    def _missing_from_export(
        self, operation: Operation, since: int, after: str, upto: str | None
    ) -> None:
        shown = {item[0] for item in operation.answer.get("items", ())}
        first = bisect_right(self._keys, after.encode())
        last = len(self._ids) if upto is None else bisect_left(self._keys, upto.encode())
        for id in self._ids[first:last]:
            if id not in shown:
                every = frozenset(self._to.values[id])
                self._to.observe(operation, id, Action.OUTSIDE, among=every, since=since)


class _Range(NamedTuple):
    """Range of an order that a page covers, ends included."""

    low: Place | None
    high: Place | None
    but: Place | None
    """Last place of the previous page, which is excluded."""

    def holds(self, place: Place) -> bool:
        """Return whether a place is in the range."""
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
    return after[0], after[1].encode()


def _keys_of(value: Value) -> set[tuple[str, str]]:
    keys = {("tag", tag) for tag in value.tags} | {("word", word) for word in value.words}
    return keys if value.session is None else keys | {("session", value.session)}
