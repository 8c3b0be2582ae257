"""Figures of the failovers of a round, from its history."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from tools.chaos.history import History, Mark, Operation, Outcome
from tools.chaos.positions import requirements
from tools.chaos.replication.workload import DEFAULTS, FIRST

SECOND = 1_000_000_000
WRITES = frozenset({"Save", "Delete", "BulkSave"})
NOT_REPLICATED = "NOT_REPLICATED"
"""Reason of a refused write: no synchronous standby streams."""


def figures(history: History) -> dict[str, Any]:
    """Return the figures of a round, in seconds.

    - ``recovery``: for each failover, from the promotion to the first acknowledged write of the
      server that needed longest;
    - ``recovery_replicated``: the same from the moment when a standby streams from the new primary,
      before which PostgreSQL confirms no commit;
    - ``outages``: for each failover, from the loss of the primary to the promotion;
    - ``gaps``: for each failover, the longest time without an acknowledged write of any client;
    - ``standby_gaps``: the same for each fault of a standby outside of failovers;
    - ``default_calls`` and ``default_failed``: calls with the default retry policy;
      ``default_refused``: those refused because no standby streamed, which is not retried.
    """
    promotions = [mark for mark in history.marks if mark.kind == "promoted"]
    lost = [mark for mark in history.marks if mark.kind == "primary lost"]
    writes = sorted(one.end or 0 for one in history if _is_acknowledged_write(one))
    patient = [one for one in history if one.client >= DEFAULTS]
    return {
        "failovers": len(promotions),
        "second_primaries": sum(mark.kind == "second primary" for mark in history.marks),
        "recovery": [_round(one) for one in _recoveries(history, promotions)],
        "recovery_replicated": [_round(one) for one in _recoveries(history, _replicates(history))],
        "outages": [
            _round(mark.at - begun.at) for begun, mark in zip(lost, promotions, strict=False)
        ],
        "gaps": [
            _round(_longest_gap(writes, begun.at, mark.at))
            for begun, mark in zip(lost, promotions, strict=False)
        ],
        "standby_gaps": [_round(one) for one in _standby_gaps(history, writes)],
        "default_calls": len(patient),
        "default_failed": sum(_failed(one) and one.reason != NOT_REPLICATED for one in patient),
        "default_refused": sum(_failed(one) and one.reason == NOT_REPLICATED for one in patient),
        "reads": requirements(history),
    }


def _failed(operation: Operation) -> bool:
    return operation.outcome is Outcome.UNKNOWN


def _replicates(history: History) -> list[Mark]:
    return [mark for mark in history.marks if mark.kind == "replicates"]


def _round(nanoseconds: float) -> float:
    return round(nanoseconds / SECOND, 3)


def _is_acknowledged_write(operation: Operation) -> bool:
    return operation.kind in WRITES and operation.outcome is Outcome.OK


def _recoveries(history: History, promotions: Sequence[Mark]) -> Iterator[int]:
    """Yield how long the slowest server that ran needed after each promotion."""
    ends: dict[int, list[int]] = {}
    for one in history:
        if FIRST <= one.client < DEFAULTS and _is_acknowledged_write(one):
            ends.setdefault(one.args["server"], []).append(one.end or 0)
    for times in ends.values():
        times.sort()
    for promotion, following in itertools.zip_longest(promotions, promotions[1:]):
        until = following.at if following is not None else float("inf")
        waits = []
        for server, times in ends.items():
            place = bisect.bisect(times, promotion.at)
            if place == len(times) or times[place] > until:
                continue
            if not _was_disturbed(history, server, promotion.at, times[place]):
                waits.append(times[place] - promotion.at)
        if waits:
            yield max(waits)


def _was_disturbed(history: History, server: int, since: int, until: int) -> bool:
    """Return whether a server was down or frozen, or a node was frozen, in an interval."""
    begun: dict[object, int] = {}
    for mark in history.marks:
        if mark.kind == "server" and mark.facts["number"] == server:
            key, begins = "server", mark.facts["state"] == "down"
        elif mark.kind in {"fault begins", "fault ends"} and mark.facts["name"] in _EXCUSES:
            key, begins = mark.facts["number"], mark.kind == "fault begins"
        else:
            continue
        if begins:
            begun[key] = mark.at
        elif begun.pop(key, until) < until and mark.at > since:
            return True
    return any(at < until for at in begun.values())


_EXCUSES = frozenset(
    {
        "server frozen",
        "PostgreSQL: standby frozen",
        "PostgreSQL: standby cut off",
        "PostgreSQL: WAL receiver paused",
    }
)
"""Faults beside a failover during which a server or the only standby cannot answer."""


def _longest_gap(times: Sequence[int], since: int, until: int) -> int:
    """Return the longest pause between ``times``, of those that overlap an interval."""
    first = max(bisect.bisect(times, since) - 1, 0)
    last = bisect.bisect(times, until) + 1
    return max((b - a for a, b in itertools.pairwise(times[first:last])), default=0)


def _standby_gaps(history: History, writes: Sequence[int]) -> Iterator[int]:
    """Yield the longest gap during each fault of one standby while the primary is well."""
    troubled = False
    begun: int | None = None
    for mark in history.marks:
        if mark.kind == "fault begins" and "standby" not in mark.facts["name"]:
            troubled = True
        elif mark.kind == "whole":
            troubled = False
        elif mark.kind == "standby disturbed":
            begun = None if troubled else mark.at
        elif mark.kind == "standby undisturbed" and begun is not None:
            if not troubled:
                yield _longest_gap(writes, begun, mark.at)
            begun = None
