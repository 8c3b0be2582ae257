"""History checker: accepts correct histories and detects mutated ones.

Correctly generated histories must pass. Each is then mutated in one way, and the checker must
detect it. Histories without an opportunity for a mutation are skipped; each mutation needs a
minimum number of opportunities.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import QUICK
from tools.chaos.checker import Report, check
from tools.chaos.history import History, Mark, Operation, Outcome
from tools.chaos.history_generator import HistoryGenerator
from tools.chaos.mutations import MUTATIONS, Mutation
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind

SEEDS = 40 if QUICK else 1000


def right(seed: int, *, unknown: float = 0.2, calls: int = 40, overlap: float = 3.0) -> History:
    return HistoryGenerator(random.Random(seed), ids=3, overlap=overlap).make(
        calls, unknown=unknown
    )


@given(
    st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 3.0, 10.0]), st.sampled_from([0, 0.3, 0.7])
)
def test_correct_history_passes(seed: int, overlap: float, unknown: float) -> None:
    history = right(seed, unknown=unknown, overlap=overlap)
    report = check(history)
    assert report.ok, str(report)


_NAMES = [
    "-".join([mutate.__name__, *(str(one.cell_contents) for one in mutate.__closure__ or ())])
    for mutate in MUTATIONS
]


@pytest.mark.parametrize("mutate", list(MUTATIONS), ids=_NAMES)
def test_mutation_is_detected(mutate: Mutation) -> None:
    occasions, named = 0, Counter[Kind]()
    for seed in range(10 * SEEDS):
        if occasions == SEEDS // 4:
            break
        history = right(seed, overlap=random.Random(seed).choice((0.4, 2.0)))
        if not mutate(history, random.Random(seed)):
            continue
        occasions += 1
        report = check(history)
        assert report.violations, f"seed {seed}: nothing was found"
        named.update({one.kind for one in report.violations})
        assert all(str(one) for one in report.violations)
    assert occasions >= SEEDS // 8
    assert sum(named[kind] for kind in MUTATIONS[mutate]) >= 0.8 * occasions, named


# ---------------------------------------------------------------------- handwritten histories


class Story:
    """Builds a history of a few operations, in units of time."""

    def __init__(self) -> None:
        self.history = History()

    def add(self, kind: str, start: int, end: int, args: dict[str, Any]) -> Operation:
        operation = Operation(len(self.history), 0, kind, args, start, end, Outcome.OK)
        self.history.add(operation)
        return operation

    def save(self, start: int, end: int, name: str, revision: int, **args: Any) -> Operation:
        value = Value("m", name, name, 0).as_json()
        operation = self.add("Save", start, end, {"value": value, **args})
        operation.answer = {"revision": revision, "durable_on": ["SQLITE"]}
        return operation

    def get(self, start: int, end: int, name: str = "", revision: int = 0) -> Operation:
        operation = self.add("Get", start, end, {"id": "m"})
        if name:
            operation.answer = {"items": [Shown("m", name, name, revision, 1, 0)]}
        else:
            operation.outcome, operation.code = Outcome.REFUSED, "NOT_FOUND"
        return operation

    def check(self) -> Report:
        return check(self.history)

    def kinds(self) -> list[Kind]:
        return [one.kind for one in self.check().violations]


def test_lost_write_is_reported_with_minimal_proof() -> None:
    story = Story()
    story.save(0, 10, "first", 1)
    for start in range(20, 80, 20):
        story.get(start, start + 10, "first", 1)
    story.save(100, 110, "second", 2)
    story.get(120, 130)
    (one,) = story.check().violations
    assert one.kind is Kind.LOST_WRITE
    assert [operation.kind for operation in one.operations] == ["Save", "Get"]
    assert "second" in str(one)
    assert "NOT_FOUND" in str(one)


def test_reappearing_value_is_stale_read_not_lost_write() -> None:
    story = Story()
    story.save(0, 10, "first", 1)
    story.save(20, 30, "second", 2)
    story.get(40, 50, "first", 1)
    story.get(60, 70, "second", 2)
    assert story.kinds() == [Kind.STALE_READ]


def test_unanswered_write_takes_effect_late_once_or_never() -> None:
    story = Story()
    story.save(0, 10, "first", 1)
    lost = story.save(20, 30, "second", 0)
    lost.outcome, lost.answer = Outcome.UNKNOWN, {}
    story.get(40, 50, "first", 1)
    assert story.kinds() == []
    story.get(60, 70, "second", 2)
    assert story.kinds() == []
    story.get(80, 90, "first", 1)
    assert story.kinds() == [Kind.LOST_WRITE]  # The value was observed, and then no longer.


def test_retried_write_may_take_effect_twice_or_late() -> None:
    story = Story()
    story.save(0, 10, "first", 1, tries=2)
    story.save(20, 30, "second", 2)
    story.get(40, 50, "first", 3)
    assert story.kinds() == []
    story.save(60, 70, "second", 4)
    story.get(80, 90, "first", 5)
    assert story.kinds() != []


def test_two_saves_accepted_with_same_guard_violate() -> None:
    story = Story()
    story.save(0, 10, "first", 1)
    story.save(20, 40, "second", 2, if_revision=1)
    story.save(20, 40, "third", 3, if_revision=1)
    assert story.kinds() == [Kind.GUARD_BROKEN]


def test_repeated_guarded_save_may_find_an_equal_message_of_another_client() -> None:
    """The client library cannot tell it from the one that it sent."""
    for args, kinds in (
        ({"if_revision": 0, "tries": 2}, []),
        ({"if_revision": 7, "tries": 2}, []),
        ({"if_revision": 0}, [Kind.GUARD_BROKEN]),
    ):
        story = Story()
        story.save(0, 10, "first", 1)
        story.save(20, 30, "first", 1, **args)
        story.get(40, 50, "first", 1)
        assert story.kinds() == kinds, args
    story = Story()
    story.save(0, 10, "first", 1)
    story.save(20, 30, "second", 2, if_revision=0, tries=2)
    assert story.kinds() == [Kind.GUARD_BROKEN]


def test_partial_batch_violates_atomicity() -> None:
    story = Story()
    values = [Value(id, f"of {id}", "new", 0).as_json() for id in ("m", "n")]
    batch = story.add("BulkSave", 0, 10, {"values": values})
    batch.outcome = Outcome.UNKNOWN
    story.get(20, 30)
    assert story.kinds() == []
    other = story.add("Get", 40, 50, {"id": "n"})
    other.answer = {"items": [Shown("n", "of n", "new", 3, 1, 0)]}
    assert story.kinds() == []  # The batch may have been applied between the two reads.
    story.get(60, 70)
    (one,) = story.check().violations
    assert (one.kind, one.id) == (Kind.BULK_NOT_ATOMIC, "m")


def test_observed_value_of_unchanged_batch_violates() -> None:
    story = Story()
    batch = story.add("BulkSave", 0, 10, {"values": [Value("m", "new", "new", 0).as_json()]})
    batch.answer = {"saved": 0, "unchanged": 1, "skipped": 0, "rejected": 0}
    story.get(20, 30, "new", 1)
    assert story.kinds() == [Kind.NOT_LINEARIZABLE]
    batch.answer = {"saved": 1, "unchanged": 0, "skipped": 0, "rejected": 0}
    assert story.kinds() == []


def test_value_read_before_it_is_sent_is_phantom() -> None:
    story = Story()
    story.get(0, 10, "first", 1)
    story.save(20, 30, "first", 1)
    assert story.kinds() == [Kind.PHANTOM]


def test_durable_on_is_checked_against_phase() -> None:
    story = Story()
    story.history.add(Mark("phase", -1, {"phase": "sqlite-only"}))
    story.history.add(Mark("phase", 100, {"phase": "dual-write"}))
    story.save(0, 10, "first", 1)
    save = story.save(20, 30, "second", 2, durability="BOTH")
    save.answer = {"revision": 2, "durable_on": ["POSTGRESQL"]}
    assert story.kinds() == [Kind.DURABLE_ON_LIE]
    save.answer = {"revision": 2, "durable_on": ["SQLITE", "POSTGRESQL"]}
    assert story.kinds() == []  # The next phase may have begun before it was observed.
    story.history.marks.clear()
    story.history.add(Mark("phase", -1, {"phase": "sqlite-only"}))
    assert story.kinds() == [Kind.DURABLE_ON_LIE]


def test_durable_on_is_checked_against_store_contents() -> None:
    story = Story()
    story.save(0, 10, "first", 1).answer = {"revision": 1, "durable_on": ["SQLITE", "POSTGRESQL"]}
    story.save(20, 30, "second", 2).answer = {"revision": 2, "durable_on": ["SQLITE"]}
    inspection = story.add("Peek", 40, 50, {"store": "POSTGRESQL"})
    inspection.answer = {"items": [Shown("m", "first", "first", 1, 1, 0)]}
    assert story.kinds() == []
    inspection.answer = {"items": []}
    assert story.kinds() == [Kind.DURABLE_ON_LIE]
    gone = story.add("Delete", 32, 34, {"id": "m"})
    gone.outcome = Outcome.UNKNOWN
    assert story.kinds() == []
    # A deletion that was never sent explains nothing, unless an earlier attempt may have been sent.
    gone.outcome, gone.code, gone.reason = Outcome.REFUSED, "UNAVAILABLE", "UNSENT"
    assert story.kinds() == [Kind.DURABLE_ON_LIE]
    gone.args = {"id": "m", "tries": 2}
    assert story.kinds() == []


def test_durable_on_is_checked_again_after_set_back() -> None:
    story = Story()
    for start, revision in ((0, 1), (60, 2)):
        saved = {"revision": revision, "durable_on": ["SQLITE", "POSTGRESQL"]}
        story.save(start, start + 5, f"v{revision}", revision).answer = saved
    recorded = History(iter((20, 40)).__next__)
    for ends in (False, True):
        story.history.add(recorded.mark_set_back(ends=ends, how="rows"))
    before, during, after = (
        story.add("Peek", start, start + 5, {"store": "POSTGRESQL"}) for start in (10, 30, 50)
    )
    before.answer = {"items": [Shown("m", "v1", "v1", 1, 1, 0)]}
    during.answer = after.answer = {"items": []}
    assert story.kinds() == []
    story.add("Peek", 70, 75, {"store": "POSTGRESQL"}).answer = {"items": []}
    assert story.kinds() == [Kind.DURABLE_ON_LIE]
    before.answer = {"items": []}
    assert story.kinds() == [Kind.DURABLE_ON_LIE] * 2


def test_baseline_values_are_known() -> None:
    story = Story()
    first = story.add("Baseline", 0, 10, {})
    value = Value("m", "old", "old", 0).as_json()
    first.answer = {"values": [value], "items": [Shown("m", "old", "old", 7, 1, 0)]}
    story.get(20, 30, "old", 7)
    assert story.kinds() == []
    story.get(40, 50)
    assert story.kinds() == [Kind.LOST_WRITE]


def test_internal_error_is_reported() -> None:
    story = Story()
    broken = story.get(20, 30)
    broken.outcome, broken.code, broken.reason = Outcome.UNKNOWN, "INTERNAL", "INTERNAL"
    assert story.kinds() == [Kind.WRONG_ANSWER]


def test_undecided_id_does_not_pass() -> None:
    report = check(right(3), budget=0)
    assert not report.violations
    assert not report.ok
    assert {one.kind for one in report.undecided} == {Kind.UNDECIDED}
    assert "undecided after" in str(report)


def test_report_has_counts_and_text() -> None:
    report = check(right(1))
    told = report.as_json()
    assert told["operations"] == sum(told["by_kind"].values())
    assert told["violations"] == []
    assert "no violation" in str(report)
