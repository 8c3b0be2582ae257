"""Generator of correct histories: a store in memory, used by one call at a time.

Each call takes effect at one moment; its begin and end are drawn around it. The history is
therefore linearizable however much the calls overlap, and a mutation breaks a history that was
correct. Values, revisions, and the answers of lists, searches and exports are those of a real
service.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.chaos.history import History, Operation, Outcome
from tools.chaos.values import Shown, Value

STEP = 1_000_000
"""Nanoseconds between two moments."""


@dataclass
class Model:
    """Store: messages by id, and one revision counter."""

    stored: dict[str, tuple[Value, int, int]] = field(default_factory=dict)
    """By id: value, revision, and the revision of its first storage, which is its sequence."""
    counter: int = 0

    def save(self, value: Value, guard: int | None) -> tuple[str, dict[str, Any]]:
        """Return a code ("" for success) and the answer."""
        there = self.stored.get(value.id)
        revision = None if there is None else there[1]
        if guard == 0 and there is not None:
            return "ALREADY_EXISTS", {"stored_revision": revision}
        if guard and guard != revision:
            return "ABORTED", {"stored_revision": revision}
        if there is None or there[0].digest != value.digest:
            self.counter += 1
            created = self.counter if there is None else there[2]
            self.stored[value.id] = value, self.counter, created
        now = self.stored[value.id][1]
        return "", {"revision": now, "created": there is None, "durable_on": ["SQLITE"]}

    def delete(self, id: str, guard: int | None) -> tuple[str, dict[str, Any]]:
        """Return a code ("" for success) and the answer."""
        there = self.stored.get(id)
        if there is None:
            return "NOT_FOUND", {}
        if guard is not None and guard != there[1]:
            return "ABORTED", {"stored_revision": there[1]}
        del self.stored[id]
        self.counter += 1
        return "", {}

    def shown(self, id: str) -> Shown:
        """Return what a read returns."""
        value, revision, first = self.stored[id]
        return Shown(id, value.digest, value.label, revision, first, value.timestamp, first)


class HistoryGenerator:
    """Generates histories from one random generator."""

    def __init__(self, draw: random.Random, *, ids: int = 2, overlap: float = 3.0) -> None:
        """Create the generator; calls last up to ``overlap`` steps on each side of their moment."""
        self.draw = draw
        self.model = Model()
        self.history = History()
        self._ids = [f"id-{number}" for number in range(ids)]
        self._overlap = overlap
        self._at = 0
        self._values = itertools.count()
        self._sent: dict[str, list[Value]] = {id: [] for id in self._ids}
        self._late: list[tuple[int, Callable[[], object]]] = []

    def make(self, calls: int, *, unknown: float = 0.2, settle: bool = True) -> History:
        """Generate ``calls`` calls; ``unknown`` is the share of unanswered writes."""
        acts = [self._save, self._save, self._delete, self._get, self._get, self._batch_get,
                self._list, self._search, self._bulk, self._export]  # fmt: skip
        for _ in range(calls):
            self._tick()
            self.draw.choice(acts)(unknown)
        if settle:
            self._at += 20
            self._late.clear()
            for id in self._ids:
                self._tick()
                self._get(0, id)
            self._list(0)
            self._export(0)
        self.history.operations.sort(key=lambda one: one.start)
        for number, one in enumerate(self.history.operations):
            one.number = number
        return self.history

    # ------------------------------------------------------------------ time

    def _tick(self) -> None:
        self._at += 1
        due = [work for at, work in self._late if at <= self._at]
        self._late = [one for one in self._late if one[0] > self._at]
        for work in due:
            work()

    def _record(
        self, kind: str, args: dict[str, Any], answer: dict[str, Any], code: str = ""
    ) -> Operation:
        around = self.draw.uniform(0.1, self._overlap), self.draw.uniform(0.1, self._overlap)
        moment = self._at * STEP + self.draw.randrange(STEP // 100)
        operation = Operation(
            len(self.history), self.draw.randrange(5), kind, args,
            moment - int(around[0] * STEP), moment + int(around[1] * STEP),
            Outcome.REFUSED if code else Outcome.OK, answer, code,
        )  # fmt: skip
        self.history.add(operation)
        return operation

    def _lose_answer(self, operation: Operation, effect: Callable[[], object]) -> None:
        """Let the write take effect now, later, or never, without an answer."""
        operation.outcome, operation.answer = Outcome.UNKNOWN, {}
        operation.code = "UNAVAILABLE"
        operation.end = operation.start + STEP // 2
        when = self.draw.random()
        if when < 0.4:
            effect()
        elif when < 0.7:
            self._late.append((self._at + self.draw.randrange(1, 15), effect))

    # ------------------------------------------------------------------ calls

    def _value(self, id: str) -> Value:
        sent = self._sent[id]
        if sent and self.draw.random() < 0.2:
            return self.draw.choice(sent)
        number = next(self._values)
        value = Value(
            id, f"digest-{number}", f"value-{number}", self.draw.randrange(5),
            f"session-{self.draw.randrange(2)}", ("tag",) if self.draw.random() < 0.6 else (),
            (f"word{number}",),
        )  # fmt: skip
        sent.append(value)
        return value

    def _guard(self, id: str, *, delete: bool = False) -> int | None:
        if self.draw.random() < 0.6:
            return None
        there = self.model.stored.get(id)
        guesses = [self.draw.randrange(1, self.model.counter + 2)]
        guesses += [] if delete else [0]
        guesses += [] if there is None else [there[1]] * 2
        return self.draw.choice(guesses)

    def _save(self, unknown: float) -> None:
        id = self.draw.choice(self._ids)
        value, guard = self._value(id), self._guard(id)
        args = {"value": value.as_json(), "if_revision": guard}
        if self.draw.random() < unknown:
            operation = self._record("Save", args, {})
            self._lose_answer(operation, lambda: self.model.save(value, guard))
        else:
            code, answer = self.model.save(value, guard)
            self._record("Save", args, answer, code)

    def _delete(self, unknown: float) -> None:
        id = self.draw.choice(self._ids)
        guard = self._guard(id, delete=True)
        args = {"id": id, "if_revision": guard}
        if self.draw.random() < unknown:
            operation = self._record("Delete", args, {})
            self._lose_answer(operation, lambda: self.model.delete(id, guard))
        else:
            code, answer = self.model.delete(id, guard)
            self._record("Delete", args, answer, code)

    def _bulk(self, unknown: float) -> None:
        count = self.draw.randrange(1, len(self._ids) + 1)
        values = [self._value(id) for id in self.draw.sample(self._ids, count)]
        skip = self.draw.random() < 0.3
        args = {"values": [value.as_json() for value in values], "skip": skip}

        def apply() -> dict[str, Any]:
            before = self.model.counter
            kept = 0
            for value in values:
                if skip and value.id in self.model.stored:
                    kept += 1
                else:
                    self.model.save(value, None)
            saved = self.model.counter - before
            unchanged = count - kept - saved
            return {"saved": saved, "unchanged": unchanged, "skipped": kept, "rejected": 0}

        if self.draw.random() < unknown:
            self._lose_answer(self._record("BulkSave", args, {}), apply)
        else:
            self._record("BulkSave", args, apply())

    def _get(self, unknown: float, id: str = "") -> None:
        id = id or self.draw.choice(self._ids)
        if id in self.model.stored:
            self._record("Get", {"id": id}, {"items": [self.model.shown(id)]})
        else:
            self._record("Get", {"id": id}, {}, "NOT_FOUND")

    def _batch_get(self, unknown: float) -> None:
        ids = self.draw.sample(self._ids, self.draw.randrange(1, len(self._ids) + 1))
        items = [self.model.shown(id) for id in ids if id in self.model.stored]
        missing = [id for id in ids if id not in self.model.stored]
        self._record("BatchGet", {"ids": ids}, {"items": items, "missing": missing})

    def _list(self, unknown: float) -> None:
        session = f"session-{self.draw.randrange(2)}"
        self._page("List", {"session": session}, lambda value: value.session == session)

    def _search(self, unknown: float) -> None:
        if self.draw.random() < 0.5:
            return self._page("Search", {"tag": "tag"}, lambda value: "tag" in value.tags)
        word = f"word{self.draw.randrange(self._number_of_values())}"
        return self._page("Search", {"word": word}, lambda value: word in value.words)

    def _number_of_values(self) -> int:
        return sum(map(len, self._sent.values())) + 1

    def _page(self, kind: str, args: dict[str, Any], holds: Callable[[Value], bool]) -> None:
        newest = self.draw.random() < 0.5
        ids = [id for id, (value, *_) in self.model.stored.items() if holds(value)]
        items = sorted((self.model.shown(id) for id in ids), key=lambda one: one.place)
        if newest:
            items.reverse()
        after = None
        if items and self.draw.random() < 0.3:
            first = items.pop(0)
            after = [first.timestamp, first.sequence]
        size = self.draw.randrange(1, 4)
        args = {**args, "order": "NEWEST" if newest else "OLDEST", "after": after}
        self._record(kind, args, {"items": items[:size], "more": len(items) > size})

    def _export(self, unknown: float) -> None:
        items = sorted(map(self.model.shown, self.model.stored), key=lambda one: one.sequence)
        cut = self.draw.randrange(len(items)) if items and self.draw.random() < 0.3 else 0
        export = next(self._values)
        after = 0
        if cut:
            part = self._record("Export", {"export": export, "after": 0}, {"items": items[:cut]})
            part.outcome = Outcome.UNKNOWN
            after = items[cut - 1].sequence
        args = {"export": export, "after": after}
        rest = self._record("Export", args, {"items": items[cut:], "done": True})
        if cut:
            rest.start, rest.end = part.start + 1, max(rest.end or 0, (part.end or 0) + 1)
