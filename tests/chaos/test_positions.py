"""Judgements of positions: correct histories of replicas pass, and stale answers are detected."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.interfaces.consistency import WalPosition
from tools.chaos.checker import check
from tools.chaos.history import History, Mark, Operation, Outcome
from tools.chaos.positions import CANCELLED, CANCELLING, requirements
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind

IDS = ("a", "b", "c")
STEP = 1000
SESSION = "s"


class Replicas:
    """Generates a history of a primary and of replicas that are any number of writes behind.

    ``stale`` makes one read with a required position show the state just before a write that the
    position covers.
    """

    def __init__(self, seed: int, *, stale: bool = False) -> None:
        self.draw = random.Random(seed)
        self.history = History()
        self.states: list[dict[str, Shown]] = [{}]
        self.timeline = 1
        self.places: list[tuple[int, int]] = [(1, 1)]
        self.revision = 0
        self.stale = stale
        self.is_broken = False

    def make(self, calls: int) -> History:
        for _ in range(calls):
            if self.draw.random() < 0.05:
                self.timeline += 1
                self.history.add(Mark("promoted", self._now(), {}))
            self.draw.choice((self.save, self.save, self.delete, self.get, self.batch, self.list))()
        return self.history

    # ------------------------------------------------------------------ calls

    def save(self) -> None:
        self.revision += 1
        id = self.draw.choice(IDS)
        digest = f"d{self.revision}"
        value = Value(id, digest, digest, 1, SESSION)
        shown = Shown(id, digest, digest, self.revision, self.revision, 1)
        self._write({**self.states[-1], id: shown})
        created = id not in self.states[-2]
        self._add(
            "Save",
            {"value": value.as_json()},
            {"revision": self.revision, "created": created, "durable_on": ["POSTGRESQL"]},
            len(self.states) - 1,
        )

    def delete(self) -> None:
        self.revision += 1
        id = self.draw.choice(IDS)
        if id in self.states[-1]:
            self._write({key: one for key, one in self.states[-1].items() if key != id})
            self._add("Delete", {"id": id}, {}, len(self.states) - 1)

    def get(self) -> None:
        id = self.draw.choice(IDS)
        args, number = self._ask(frozenset({id}))
        found = self.states[number].get(id)
        if found is None:
            operation = self._add("Get", {"id": id, **args}, {}, None)
            operation.outcome, operation.code = Outcome.REFUSED, "NOT_FOUND"
        else:
            self._add("Get", {"id": id, **args}, {"items": [found]}, number)

    def batch(self) -> None:
        args, number = self._ask(frozenset(IDS))
        state = self.states[number]
        items = [state[id] for id in IDS if id in state]
        missing = [id for id in IDS if id not in state]
        self._add(
            "BatchGet", {"ids": list(IDS), **args}, {"items": items, "missing": missing}, number
        )

    def list(self) -> None:
        args, number = self._ask(frozenset(IDS))
        items = sorted(self.states[number].values(), key=lambda one: one.id)
        asked = {"session": SESSION, "order": "RELEVANCE", "size": 500, **args}
        self._add("List", asked, {"items": items, "more": False}, number)

    # ------------------------------------------------------------------ states

    def _write(self, state: dict[str, Shown]) -> None:
        self.states.append(state)
        self.places.append((self.timeline, self.places[-1][1] + self.draw.randint(1, 9)))

    def _ask(self, ids: frozenset[str]) -> tuple[dict[str, Any], int]:
        """Return a requirement, and the number of the state that the answer shows."""
        name = self.draw.choice(("latest", "at_least", "at_least", "any_replica"))
        last = len(self.states) - 1
        if name == "latest":
            return {"requirement": name}, last
        if name == "any_replica":
            return {"requirement": name}, self.draw.randint(0, last)
        required = self.draw.randint(0, last)
        args = {"requirement": name, "position": self._position(required)}
        if self.stale and not self.is_broken and required and self._differs(required, ids):
            self.is_broken = True
            return args, required - 1
        return args, self.draw.randint(required, last)

    def _differs(self, number: int, ids: frozenset[str]) -> bool:
        """Return whether a write replaced one of the ids; an absence may be a later deletion."""
        before, after = self.states[number - 1], self.states[number]
        return any(id in before and id in after and before[id] != after[id] for id in ids)

    def _position(self, number: int) -> str:
        return WalPosition(7, *self.places[number]).encoded()

    def _now(self) -> int:
        return (len(self.history) + 1) * STEP

    def _add(
        self, kind: str, args: dict[str, Any], answer: dict[str, Any], number: int | None
    ) -> Operation:
        start = self._now()
        if number is not None:
            answer = {**answer, "position": self._position(number)}
        operation = Operation(
            len(self.history), 0, kind, args, start, start + STEP // 2, Outcome.OK, answer
        )
        self.history.add(operation)
        return operation


@given(st.integers(0, 2**32))
def test_reads_of_lagging_replicas_pass(seed: int) -> None:
    report = check(Replicas(seed).make(60))
    assert report.ok, str(report)


@given(st.integers(0, 2**32))
def test_answer_before_required_position_is_detected(seed: int) -> None:
    replicas = Replicas(seed, stale=True)
    report = check(replicas.make(60))
    found = {one.kind for one in report.violations}
    assert (Kind.STALE_POSITION in found) == replicas.is_broken, str(report)


def test_old_state_is_a_violation_only_without_a_weak_requirement() -> None:
    def history(requirement: str) -> History:
        replicas = Replicas(1)
        replicas.history.add(Mark("phase", 0, {"phase": "postgres-only"}))
        for name in ("first", "second"):
            replicas.revision += 1
            value = Value("a", name, name, 1, SESSION)
            answer = {"revision": replicas.revision, "durable_on": ["POSTGRESQL"]}
            replicas._add("Save", {"value": value.as_json()}, answer, 0)
        shown = Shown("a", "first", "first", 1, 1, 1)
        args = {"id": "a", "requirement": requirement}
        replicas._add("Get", args, {"items": [shown]}, 0)
        return replicas.history

    assert [one.kind for one in check(history("latest")).violations] == [Kind.LOST_WRITE]
    assert check(history("any_replica")).ok
    assert requirements(history("any_replica")) == {"any_replica": {"answered": 1, "failed": 0}}


def _saves(*saves: tuple[str, str, int]) -> History:
    history = History()
    for number, (id, name, revision) in enumerate(saves):
        value = Value(id, name, name, 1)
        start = (number + 1) * STEP
        answer = {"revision": revision, "durable_on": ["POSTGRESQL"]}
        history.add(
            Operation(number, 0, "Save", {"value": value.as_json()}, start, start + STEP // 2,
                      Outcome.OK, answer)
        )  # fmt: skip
    return history


@pytest.mark.parametrize("loses_writes", [False, True])
def test_revision_of_two_messages_is_a_violation_after_a_promotion(loses_writes: bool) -> None:
    history = _saves(("a", "first", 5), ("b", "second", 5))
    assert check(history, loses_writes=loses_writes).ok
    history.add(Mark("promoted", STEP, {}))
    found = check(history, loses_writes=loses_writes).violations
    assert [one.kind for one in found] == [Kind.REVISION_REUSED]


def test_lost_writes_are_expected_with_asynchronous_replication() -> None:
    history = _saves(("a", "first", 5))
    operation = Operation(1, 0, "Get", {"id": "a"}, 5 * STEP, 6 * STEP, Outcome.REFUSED)
    operation.code = "NOT_FOUND"
    history.add(operation)
    assert [one.kind for one in check(history).violations] == [Kind.LOST_WRITE]
    assert check(history, loses_writes=True).ok


@pytest.mark.parametrize("acknowledged", [False, True])
def test_write_whose_wait_was_cancelled_may_be_lost_unless_acknowledged(
    acknowledged: bool,
) -> None:
    history = _saves(("a", "first", 5))
    if not acknowledged:
        history.operations[0].outcome, history.operations[0].answer = Outcome.UNKNOWN, {}
    seen = Shown("a", "first", "first", 5, 1, 1)
    history.add(Operation(1, 0, "Get", {"id": "a"}, 2 * STEP, 2 * STEP + 1, Outcome.OK,
                          {"items": [seen]}))  # fmt: skip
    history.add(Operation(2, 0, "Get", {"id": "a"}, 5 * STEP, 6 * STEP, Outcome.REFUSED,
                          {}, "NOT_FOUND"))  # fmt: skip
    history.add(Mark(CANCELLING, 0, {}))
    history.add(Mark(CANCELLED, 4 * STEP, {}))
    kinds = [one.kind for one in check(history).violations]
    assert kinds == ([Kind.LOST_WRITE] if acknowledged else [])
