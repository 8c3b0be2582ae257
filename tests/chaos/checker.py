"""Decides whether a history keeps the promises of the service: docs/history-checker.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import linearizable
from tests.chaos.diagnosis import name, prove_wrong
from tests.chaos.durability import lies
from tests.chaos.history import History, Outcome
from tests.chaos.linearizable import Verdict, linearize
from tests.chaos.projection import Projection
from tests.chaos.register import SAVES, Action, Call
from tests.chaos.sharpening import fewer, prove
from tests.chaos.violations import Kind, Violation, violation

WRITING = frozenset({"Save", "Delete", "BulkSave"})
_MOST = 3
"""Contradictions that are looked for under one id."""


@dataclass
class Report:
    """What a check came to."""

    violations: list[Violation] = field(default_factory=list)
    undecided: list[Violation] = field(default_factory=list)
    """Ids of which the search was given up; not right, and not proved wrong."""
    operations: int = 0
    unknown: int = 0
    """Operations whose effect nobody knows, reads among them."""
    acknowledged: int = 0
    """Messages written or deleted, as the service said; a batch counts its messages."""
    reads: int = 0
    """Messages, or their absences, that were shown."""
    ids: int = 0
    configurations: int = 0
    """Looked at by the searches, all together."""
    by_kind: Counter[str] = field(default_factory=Counter)
    """Operations by kind and outcome, as ``Save/ok``."""
    codes: Counter[str] = field(default_factory=Counter)
    """Errors by kind and code, as ``Save/UNAVAILABLE``."""

    @property
    def ok(self) -> bool:
        """Whether all was decided, and nothing is wrong."""
        return not self.violations and not self.undecided

    @property
    def kinds(self) -> Counter[str]:
        """How many violations there are of each kind, what is undecided among them."""
        return Counter(str(one.kind) for one in (*self.violations, *self.undecided))

    def as_json(self) -> dict[str, Any]:
        """Return it for a report of many rounds."""
        return {
            "operations": self.operations,
            "unknown": self.unknown,
            "acknowledged": self.acknowledged,
            "reads": self.reads,
            "ids": self.ids,
            "configurations": self.configurations,
            "by_kind": dict(sorted(self.by_kind.items())),
            "codes": dict(sorted(self.codes.items())),
            "kinds": dict(sorted(self.kinds.items())),
            "violations": [one.as_json() for one in (*self.violations, *self.undecided)],
        }

    def __str__(self) -> str:
        """Tell it to a person."""
        told = (
            f"{self.operations:,} operations on {self.ids:,} ids, {self.unknown:,} of unknown "
            f"outcome, {self.acknowledged:,} acknowledged writes, {self.reads:,} answers checked"
        )
        wrong = [str(one) for one in (*self.violations, *self.undecided)]
        return "\n".join([told, *(wrong or ["no violation"])])


def check(history: History, *, budget: int = linearizable.BUDGET) -> Report:
    """Judge a history that is over.

    ``budget`` is how many configurations are looked at for one id before it is reported as
    undecided. Takes some seconds for ten thousand operations.
    """
    report = Report()
    _count(history, report)
    projection = Projection(history)
    report.violations += projection.violations
    report.violations += lies(history)
    report.ids = len(projection.calls)
    report.reads = sum(not call.writes for calls in projection.calls.values() for call in calls)
    prove(projection.calls, projection.batches)
    kinds = [operation.kind for operation in history]
    for id, calls in sorted(projection.calls.items()):
        clashes = list(_clashes(history, id, calls))
        report.violations += clashes
        if not clashes:
            _judge(history, id, fewer(calls, kinds), kinds, report, budget)
    return report


def _judge(
    history: History, id: str, calls: list[Call], kinds: Sequence[str], report: Report, budget: int
) -> None:
    """Search for an order of what happened to one id; report what contradicts itself."""
    told: set[Kind] = set()
    for _ in range(_MOST):
        decision = linearize(calls, budget)
        report.configurations += decision.configurations
        if decision.verdict is Verdict.YES:
            return
        if decision.verdict is Verdict.UNDECIDED:
            if not told:
                what = f"{len(calls)} calls, given up after {decision.configurations:,} orders"
                report.undecided.append(violation(history, Kind.UNDECIDED, id, what, ()))
            return
        proof = prove_wrong(calls, kinds)
        kind, what = name(proof, calls, kinds)
        if proof.unknown:
            what += f"; {proof.unknown} writes of unknown outcome do not explain it"
        if kind not in told:
            numbers = [call.operation for call in (*proof.core, *_writers(proof.core, calls))]
            report.violations.append(violation(history, kind, id, what, numbers))
        told.add(kind)
        # What is wrong besides shows when a witness is not asked.
        gone = {call for call in proof.core if not call.writes}
        if not gone:
            return
        calls = [call for call in calls if call not in gone]


def _writers(core: Sequence[Call], calls: Sequence[Call]) -> list[Call]:
    """Return who wrote what was found: a reader of the proof wants to know."""
    found = {call.digest for call in core if call.action is Action.FIND}
    return [call for call in calls if call.action in SAVES and call.digest in found]


def _clashes(history: History, id: str, calls: Sequence[Call]) -> Iterator[Violation]:
    """Find revisions that are given twice, or that go back, at first sight."""
    told = [call for call in calls if call.revision is not None and call.digest is not None]
    values: dict[int, Call] = {}
    for call in told:
        other = values.setdefault(call.revision or 0, call)
        if other.digest != call.digest:
            what = f"revision {call.revision} has two values"
            yield violation(
                history, Kind.REVISION_REUSED, id, what, [other.operation, call.operation]
            )
            return
    highest: Call | None = None
    ends = sorted((call for call in told if call.must), key=lambda call: call.end)
    passed = 0
    for call in sorted((one for one in told if one.action in SAVES), key=lambda one: one.start):
        while passed < len(ends) and ends[passed].end < call.start:
            if highest is None or (ends[passed].revision or 0) > (highest.revision or 0):
                highest = ends[passed]
            passed += 1
        if highest is not None and call.must and (call.revision or 0) < (highest.revision or 0):
            what = f"revision {call.revision} after {highest.revision}"
            both = [highest.operation, call.operation]
            yield violation(history, Kind.REVISION_WENT_BACK, id, what, both)
            return


def _count(history: History, report: Report) -> None:
    report.operations = len(history)
    for operation in history:
        unknown = operation.outcome in {Outcome.UNKNOWN, Outcome.OPEN}
        outcome = Outcome.UNKNOWN if unknown else operation.outcome
        report.unknown += unknown
        report.by_kind[f"{operation.kind}/{outcome}"] += 1
        if operation.outcome is not Outcome.OK:
            report.codes[f"{operation.kind}/{operation.code or 'OPEN'}"] += 1
        elif operation.kind in WRITING:
            report.acknowledged += len(operation.args.get("values", ("one",)))
