"""Reduction of the calls on an id without changing the verdict.

Most values are written once. A read of such a value proves that its write has taken effect by then,
and contains its revision. Among several reads of the same version, those that ended first and began
last imply the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tools.chaos.register_model import SAVES, Action, Call

SCANS = frozenset({"List", "Search", "Export"})


def prove(calls: Mapping[str, Sequence[Call]], batches: Mapping[int, Sequence[Call]]) -> None:
    """Resolve writes of unknown outcome from the reads that observed them.

    A batch is atomic: if one of its values was observed, the whole batch took effect.
    """
    for mine in calls.values():
        _prove_one(mine)
    for batch in batches.values():
        seen = [call.end for call in batch if call.must]
        for call in batch:
            if seen and not call.must:
                call.must = call.forced = True
                call.end = min(seen)


def _prove_one(calls: Sequence[Call]) -> None:
    writers: defaultdict[str | None, list[Call]] = defaultdict(list)
    found: defaultdict[str | None, list[Call]] = defaultdict(list)
    for call in calls:
        if call.action in SAVES:
            writers[call.digest].append(call)
        elif call.action is Action.FIND:
            found[call.digest].append(call)
    for digest, those in writers.items():
        seen = found.get(digest, [])
        if len(those) != 1 or not seen:
            continue
        (call,) = those
        first = min(one.end for one in seen)
        if first < call.start:
            continue  # Observed before it was sent: the observation proves nothing.
        if not call.must:
            call.must, call.end = True, first
        # A save that changed nothing cannot have written the observed value.
        unsaid = call.revision is None and call.changed is not False
        if unsaid and len({one.revision for one in seen}) == 1:
            call.revision, call.changed = seen[0].revision, True


def reduce_reads(calls: Iterable[Call], kinds: Sequence[str]) -> list[Call]:
    """Remove reads that are implied by others; ``kinds`` are those of the operations.

    Single reads and range reads are reduced separately, because single reads make clearer proofs.
    """
    kept: list[Call] = []
    finds: defaultdict[object, list[Call]] = defaultdict(list)
    others: defaultdict[object, list[Call]] = defaultdict(list)
    for call in calls:
        scan = kinds[call.operation] in SCANS
        if call.action is Action.FIND and call.revision is not None:
            finds[scan, call.digest, call.revision].append(call)
        elif call.action in {Action.ABSENT, Action.OUTSIDE}:
            others[scan, call.action, call.among].append(call)
        else:
            kept.append(call)
    for those in finds.values():
        first = min(those, key=lambda call: call.end)
        last = max(those, key=lambda call: call.start)
        kept += [first] if first is last else [first, last]
    for those in others.values():
        kept += _narrowest(those)
    return kept


def _narrowest(calls: Sequence[Call]) -> list[Call]:
    """Return the calls whose interval contains no other call's interval."""
    kept: list[Call] = []
    for call in sorted(calls, key=lambda call: (call.end, -call.start)):
        if not kept or call.start > kept[-1].start:
            kept.append(call)
    return kept


def until(calls: Iterable[Call], moment: float) -> list[Call]:
    """Return the calls as known at a moment: a call that had not ended may not have happened."""
    known: list[Call] = []
    for call in calls:
        if call.start > moment:
            continue
        if call.end <= moment or not call.must:
            known.append(call)
        elif call.writes:
            known.append(as_unknown(call))
    return known


def as_unknown(call: Call) -> Call:
    """Return a write as if it had not been answered."""
    return replace(
        call, must=False, end=float("inf"), revision=None, created=None, changed=None, forced=False
    )
