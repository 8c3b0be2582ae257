"""Totals of the failovers of a campaign."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tools.chaos.replication.fleet import QUORUM
from tools.chaos.replication.read_metrics import replica_share, wait_bound

_SERIES = ("recovery", "recovery_replicated", "outages", "gaps", "standby_gaps")
_COUNTS = ("failovers", "second_primaries", "default_calls", "default_failed", "default_refused")


class ClusterTotals:
    """Sums up the ``cluster`` figures of rounds; empty if no round has any."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._series: dict[str, list[float]] = {name: [] for name in _SERIES}
        self._reads: Counter[tuple[str, str]] = Counter()
        self._served: Counter[str] = Counter()
        self._seconds = 0.0

    def add(self, verdict: dict[str, Any]) -> None:
        """Add the verdict on a round."""
        found = verdict.get("cluster")
        if not found:
            return
        self._seconds += verdict["seconds"]
        self._served.update(verdict.get("read_counts", {}))
        mode = verdict["plan"]["replication"]
        self._counts[f"{mode} failovers"] += found["failovers"]
        for name in _COUNTS:
            self._counts[name] += found[name]
        for requirement, counts in found["reads"].items():
            for outcome, count in counts.items():
                self._reads[requirement, outcome] += count
        if mode == QUORUM:
            # Asynchronous replication is there for the revisions, not for times.
            for name in _SERIES:
                self._series[name] += found[name]

    def as_json(self) -> dict[str, Any]:
        """Return the totals; empty if no round was a cluster round."""
        if not self._counts:
            return {}
        reads: dict[str, dict[str, int]] = {}
        for (requirement, outcome), count in sorted(self._reads.items()):
            reads.setdefault(requirement, {})[outcome] = count
        return {
            **dict(sorted(self._counts.items())),
            "failovers_per_minute": round(60 * self._counts["failovers"] / self._seconds, 1),
            **{name: summary(self._series[name]) for name in _SERIES},
            "reads": reads,
            "at_least_by_replicas": round(replica_share(self._served, "at_least"), 4),
            "at_least_wait_p99": wait_bound(self._served, 0.99),
        }

    def text(self) -> list[str]:
        """Return the totals as lines of text."""
        totals = self.as_json()
        if not totals:
            return []
        reads = ", ".join(
            f"{counts.get('answered', 0):,} {name}" for name, counts in totals["reads"].items()
        )
        quorum, rate = totals.get("quorum failovers", 0), totals["failovers_per_minute"]
        calls, failed = totals["default_calls"], totals["default_failed"]
        refused = totals["default_refused"]
        share, wait = totals["at_least_by_replicas"], 1000 * totals["at_least_wait_p99"]
        return [
            f"  Failovers                 {totals['failovers']} ({quorum} with quorum commit)",
            f"  Failovers per minute      {rate}",
            f"  Former primaries back     {totals['second_primaries']}",
            f"  Loss to promotion         {_times(totals['outages'])}",
            f"  Promotion to writes       {_times(totals['recovery'])}",
            f"  Replication to writes     {_times(totals['recovery_replicated'])}",
            f"  No write acknowledged     {_times(totals['gaps'])}",
            f"  The same, standby fault   {_times(totals['standby_gaps'])}",
            f"  Calls, default policy     {calls:,} ({failed} failed, {refused} refused)",
            f"  Reads by requirement      {reads}",
            f"  at_least by replicas      {share:.1%}, 99 % wait at most {wait:.0f} ms",
        ]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return number, median, 95th percentile and maximum."""
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        "median": round(statistics.median(values), 3),
        "p95": round(quantile(values, 0.95), 3),
        "max": round(max(values), 3),
    }


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _times(one: dict[str, float]) -> str:
    if not one["count"]:
        return "none"
    return f"median {one['median']:.2f} s, 95 % {one['p95']:.2f} s, max {one['max']:.2f} s"
