"""Reduces a history that is not linearizable to a minimal proof, and names the violation.

Calls are removed step by step: everything after the moment of the violation; then reads and
refusals without which the rest is still wrong; then acknowledgements. All remaining calls are
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tools.chaos.call_reduction import SCANS, as_unknown, until
from tools.chaos.linearizable import Verdict, linearize
from tools.chaos.register_model import Action, Call
from tools.chaos.violations import Kind

SHRINKING_BUDGET = 5_000
"""Configurations explored per question while a proof is reduced."""


class Proof(NamedTuple):
    """A few calls that contradict each other."""

    core: list[Call]
    """Answered calls, all of which are needed."""
    unknown: int
    """Unanswered writes, none of which explains the answers."""


def prove_wrong(calls: Sequence[Call], kinds: Sequence[str]) -> Proof:
    """Return a minimal subset of the non-linearizable ``calls`` that is not linearizable."""
    ends = sorted({call.end for call in calls if call.must})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if _is_wrong(until(calls, ends[middle])):
            high = middle
        else:
            low = middle + 1
    left = until(calls, ends[high])
    # Reads of the id alone come first; scans prove what they cannot.
    for call in sorted((one for one in left if one.must), key=lambda one: _proof_value(one, kinds)):
        rest = [one for one in left if one is not call]
        if call.writes:
            rest.append(as_unknown(call))
        if _is_wrong(rest):
            left = rest
    core = sorted((call for call in left if call.must), key=lambda call: call.start)
    return Proof(core, sum(not call.must for call in until(calls, ends[high]) if call in calls))


def _is_wrong(calls: Sequence[Call]) -> bool:
    return linearize(calls, SHRINKING_BUDGET).verdict is Verdict.NO


def _proof_value(call: Call, kinds: Sequence[str]) -> tuple[int, float]:
    if call.forced:
        return 0, call.start
    if not call.writes:
        return 1 if kinds[call.operation] in SCANS else 2, -call.start
    return 3, call.start


def name(proof: Proof, calls: Sequence[Call], kinds: Sequence[str]) -> tuple[Kind, str]:
    """Return the kind of the violation and a one-line description; ``calls`` are all of the id."""
    core = proof.core
    if any(call.forced for call in core):
        return (
            Kind.BULK_NOT_ATOMIC,
            "another message of the batch was seen, but this one is missing",
        )
    last = max(core, key=lambda call: call.end)
    witnesses = [call for call in core if not call.writes] or [last]
    points = [call for call in witnesses if kinds[call.operation] not in SCANS]
    witness = max(points or witnesses, key=lambda call: call.start)
    if not points:
        kind = _of_scan(witness, kinds[witness.operation])
        if kind is not None:
            return kind
    if witness.action in {Action.EXISTS, Action.MISMATCH}:
        return Kind.GUARD_BROKEN, "the write was refused although its condition held"
    if witness.writes:
        return _of_write(witness, core, calls)
    return _of_read(witness, core, calls)


def _of_scan(witness: Call, operation: str) -> tuple[Kind, str] | None:
    missing = witness.action is Action.OUTSIDE
    if operation == "Export":
        what = "the message existed throughout the call, but the export does not contain it"
        return (Kind.EXPORT_INCOMPLETE, what) if missing else None
    if missing:
        kind = Kind.LIST_MISSING if operation == "List" else Kind.SEARCH_MISSING
        return kind, "the message existed throughout the call, but the answer does not contain it"
    kind = Kind.LIST_EXTRA if operation == "List" else Kind.SEARCH_EXTRA
    return kind, "the answer contains a message that cannot have existed"


def _of_write(witness: Call, core: Sequence[Call], calls: Sequence[Call]) -> tuple[Kind, str]:
    if witness.guard is not None:
        return (
            Kind.GUARD_BROKEN,
            "the write was accepted although if_revision did not match the stored revision",
        )
    if witness.created:
        return _lost_or_stale(witness, core, calls)
    if witness.created is False or witness.action is Action.DELETE:
        return Kind.RESURRECTED_DELETE, "a message existed after every version had been deleted"
    revisions = [call.revision for call in core if call.revision is not None]
    if revisions and (witness.revision or 0) < max(revisions):
        return Kind.REVISION_WENT_BACK, "a later write got a lower revision"
    return Kind.NOT_LINEARIZABLE, "no order of these calls explains their answers"


def _of_read(witness: Call, core: Sequence[Call], calls: Sequence[Call]) -> tuple[Kind, str]:
    if witness.action is not Action.FIND:
        return _lost_or_stale(witness, core, calls)
    writers = [call for call in calls if call.writes and call.digest == witness.digest]
    if all(call.start > witness.end for call in writers):
        return Kind.PHANTOM, "the value was read before it was written"
    if any(_removes(call) and call.end < witness.start for call in core):
        return Kind.RESURRECTED_DELETE, "the deleted message reappeared without a new save"
    if not any(call.end < witness.start for call in core):
        return Kind.NOT_LINEARIZABLE, "no order of these calls explains their answers"
    return _lost_or_stale(witness, core, calls)


def _removes(call: Call) -> bool:
    return call.action in {Action.DELETE, Action.DELETE_IF_THERE, Action.ABSENT}


def _lost_or_stale(witness: Call, core: Sequence[Call], calls: Sequence[Call]) -> tuple[Kind, str]:
    """Decide from later reads whether a value is lost or one read was stale."""
    due = [call for call in core if call is not witness and call.digest is not None]
    after = [call for call in calls if call.action is Action.FIND and call.end > witness.end]
    newest = max((call.revision or 0 for call in due), default=0)
    if any(
        call.digest == one.digest or (newest and (call.revision or 0) >= newest)
        for call in after
        for one in due
        if call.digest != witness.digest
    ):
        return Kind.STALE_READ, "the read does not return an earlier acknowledged or observed write"
    return Kind.LOST_WRITE, "an acknowledged or observed write is lost"
