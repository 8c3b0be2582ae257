"""History checker: decides whether a history is linearizable.

The algorithm and the checks are described in docs/explanation/history-checker.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.chaos import linearizable
from tools.chaos.call_reduction import prove, reduce_reads
from tools.chaos.durability import false_claims
from tools.chaos.history import History, Outcome
from tools.chaos.linearizable import Verdict, linearize
from tools.chaos.minimal_proof import name, prove_wrong
from tools.chaos.positions import unconfirmed_ids, violations_of_positions
from tools.chaos.projection import Projection
from tools.chaos.register_model import SAVES, Action, Call
from tools.chaos.violations import Kind, Violation, violation

WRITING = frozenset({"Save", "Delete", "BulkSave"})
_MOST = 3
"""Maximum number of contradictions reported per id."""

_ALWAYS = frozenset({Kind.PHANTOM, Kind.REVISION_REUSED})
"""Violations even if acknowledged writes may be lost."""


@dataclass
class Report:
    """Result of a check."""

    violations: list[Violation] = field(default_factory=list)
    undecided: list[Violation] = field(default_factory=list)
    """Ids whose search ran out of budget: neither proved nor disproved."""
    operations: int = 0
    unknown: int = 0
    """Operations of unknown outcome, reads included."""
    acknowledged: int = 0
    """Acknowledged writes and deletions; a batch counts its messages."""
    reads: int = 0
    """Messages, and absences of messages, in answers."""
    ids: int = 0
    configurations: int = 0
    """Configurations explored by all searches."""
    by_kind: Counter[str] = field(default_factory=Counter)
    """Operations by kind and outcome, as ``Save/ok``."""
    codes: Counter[str] = field(default_factory=Counter)
    """Errors by kind and code, as ``Save/UNAVAILABLE``."""

    @property
    def ok(self) -> bool:
        """Whether every id was decided and there are no violations."""
        return not self.violations and not self.undecided

    @property
    def kinds(self) -> Counter[str]:
        """Return the number of violations of each kind, undecided ids included."""
        return Counter(str(one.kind) for one in (*self.violations, *self.undecided))

    def as_json(self) -> dict[str, Any]:
        """Return it for the report of a campaign."""
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
        summary = (
            f"{self.operations:,} operations on {self.ids:,} ids, {self.unknown:,} of unknown "
            f"outcome, {self.acknowledged:,} acknowledged writes, {self.reads:,} answers checked"
        )
        wrong = [str(one) for one in (*self.violations, *self.undecided)]
        return "\n".join([summary, *(wrong or ["no violation"])])


def check(
    history: History, *, budget: int = linearizable.BUDGET, loses_writes: bool = False
) -> Report:
    """Check a finished history. Checking ten thousand operations takes some seconds.

    Args:
        history: The history.
        budget: Maximum number of configurations to explore per id; beyond it the id is reported
            as undecided.
        loses_writes: Whether acknowledged writes may be lost, as with asynchronous replication.
            Then only invented values and repeated revisions are violations.

    """
    report = Report()
    _count(history, report)
    projection = Projection(history)
    found = [*projection.violations, *violations_of_positions(history)]
    report.ids = len(projection.calls)
    if loses_writes:
        report.violations = [one for one in found if one.kind in _ALWAYS]
        return report
    report.violations += [*found, *false_claims(history)]
    report.reads = sum(not call.writes for calls in projection.calls.values() for call in calls)
    prove(projection.calls, projection.batches)
    judge = _Judge(history, report, budget)
    unconfirmed = unconfirmed_ids(history)
    for id, calls in sorted(projection.calls.items()):
        if id not in unconfirmed:
            judge.judge(id, calls)
    return report


class _Judge:
    """Searches for a linearization of the calls on an id and reports contradictions."""

    def __init__(self, history: History, report: Report, budget: int) -> None:
        self._history = history
        self._report = report
        self._budget = budget
        self._kinds = [operation.kind for operation in history]

    def judge(self, id: str, every: Sequence[Call]) -> None:
        """Check all calls on an id."""
        clashes = list(_clashes(self._history, id, every))
        self._report.violations += clashes
        calls = [] if clashes else reduce_reads(every, self._kinds)
        reported: set[Kind] = set()
        for _ in range(_MOST):
            decision = linearize(calls, self._budget)
            self._report.configurations += decision.configurations
            if decision.verdict is Verdict.UNDECIDED and not reported:
                what = f"{len(calls)} calls, undecided after {decision.configurations:,} orders"
                one = violation(self._history, Kind.UNDECIDED, id, what, ())
                self._report.undecided.append(one)
            if decision.verdict is not Verdict.NO:
                return
            # Further contradictions show once these witnesses are removed.
            witnesses = self._report_contradiction(id, calls, reported)
            if not witnesses:
                return
            calls = [call for call in calls if call not in witnesses]

    def _report_contradiction(
        self, id: str, calls: Sequence[Call], reported: set[Kind]
    ) -> set[Call]:
        """Report a contradiction unless its kind was reported already; return its witnesses."""
        proof = prove_wrong(calls, self._kinds)
        kind, what = name(proof, calls, self._kinds)
        if proof.unknown:
            what += f" (writes of unknown outcome, none of which explains it: {proof.unknown})"
        if kind not in reported:
            numbers = [call.operation for call in (*proof.core, *_writers(proof.core, calls))]
            self._report.violations.append(violation(self._history, kind, id, what, numbers))
        reported.add(kind)
        return {call for call in proof.core if not call.writes}


def _writers(core: Sequence[Call], calls: Sequence[Call]) -> list[Call]:
    """Return the writes of the observed values, so that the proof shows them."""
    found = {call.digest for call in core if call.action is Action.FIND}
    return [call for call in calls if call.action in SAVES and call.digest in found]


def _clashes(history: History, id: str, calls: Sequence[Call]) -> Iterator[Violation]:
    """Find revisions that are used twice or decrease, without a search."""
    with_revision = [
        call for call in calls if call.revision is not None and call.digest is not None
    ]
    values: dict[int, Call] = {}
    for call in with_revision:
        other = values.setdefault(call.revision or 0, call)
        if other.digest != call.digest:
            what = f"revision {call.revision} has two values"
            yield violation(
                history, Kind.REVISION_REUSED, id, what, [other.operation, call.operation]
            )
            return
    highest: Call | None = None
    ends = sorted((call for call in with_revision if call.must), key=lambda call: call.end)
    passed = 0
    for call in sorted(
        (one for one in with_revision if one.action in SAVES), key=lambda one: one.start
    ):
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
