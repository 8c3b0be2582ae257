"""Makes the calls on an id fewer and more definite, without changing the verdict.

Values are mostly written once. Whoever sees such a value proves that its write has had its
effect by then, and tells its revision. And of many reads that saw the same version, those
that ended first and began last say all that the others say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tools.chaos.register_model import SAVES, Action, Call

SCANS = frozenset({"List", "Search", "Export"})


def prove(calls: Mapping[str, Sequence[Call]], batches: Mapping[int, Sequence[Call]]) -> None:
    """Settle what is known of writes that nobody acknowledged, from those who saw them.

    A batch is applied wholly or not at all: where one of its values was seen, all of it
    must have had its effect.
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
            continue  # Seen before it was sent: nothing of that can be believed.
        if not call.must:
            call.must, call.end = True, first
        # One that is said to have changed nothing cannot have written what was seen.
        unsaid = call.revision is None and call.changed is not False
        if unsaid and len({one.revision for one in seen}) == 1:
            call.revision, call.changed = seen[0].revision, True


def reduce_reads(calls: Iterable[Call], kinds: Sequence[str]) -> list[Call]:
    """Leave out reads that say nothing more than others; ``kinds`` are those of operations.

    Reads of an id by itself and answers of scans are kept apart: the first prove more to
    a person.
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
    """Return the calls within whose time there is no other's: those say all."""
    kept: list[Call] = []
    for call in sorted(calls, key=lambda call: (call.end, -call.start)):
        if not kept or call.start > kept[-1].start:
            kept.append(call)
    return kept


def until(calls: Iterable[Call], moment: float) -> list[Call]:
    """Return what was known at a moment: what had not ended by then may not have happened."""
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
    """Return a write as if nobody had answered it."""
    return replace(
        call, must=False, end=float("inf"), revision=None, created=None, changed=None, forced=False
    )
