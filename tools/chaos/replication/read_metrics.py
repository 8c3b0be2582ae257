"""Metrics of reads: which node answered them, and how long they waited for a replica."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

_READS = re.compile(r'sagastore_postgres_reads_total\{node="(\w+)",requirement="(\w+)"\}')
_WAITS = re.compile(r'sagastore_replica_wait_seconds_bucket\{le="([^"]+)"\}')
PRIMARY, REPLICA = "primary", "replica"


def counted(samples: Mapping[str, float]) -> Counter[str]:
    """Return counts from the samples of one server since its start.

    Keys are ``replica at_least`` (node and requirement of reads) and ``wait 0.05`` (waits of at
    most that many seconds; ``+Inf``: all).
    """
    found: Counter[str] = Counter()
    for name, value in samples.items():
        if reads := _READS.fullmatch(name):
            node = PRIMARY if reads[1] == PRIMARY else REPLICA
            found[f"{node} {reads[2]}"] += int(value)
        elif waits := _WAITS.fullmatch(name):
            found[f"wait {waits[1]}"] += int(value)
    return found


def replica_share(counts: Mapping[str, int], requirement: str) -> float:
    """Return the share of the reads with a requirement that replicas answered; 0 without reads."""
    replica, primary = (counts.get(f"{node} {requirement}", 0) for node in (REPLICA, PRIMARY))
    return replica / (replica + primary) if replica + primary else 0.0


def wait_bound(counts: Mapping[str, int], share: float) -> float:
    """Return a time in seconds that at least ``share`` of the `at_least` reads do not wait longer.

    Reads that do not wait count as well. The time is the limit of a bucket of the histogram.
    """
    reads = sum(counts.get(f"{node} at_least", 0) for node in (REPLICA, PRIMARY))
    at_once = max(0, reads - counts.get("wait +Inf", 0))
    limits = sorted(
        (float(key.removeprefix("wait ")), count)
        for key, count in counts.items()
        if key.startswith("wait ")
    )
    if at_once >= share * reads:
        return 0.0
    return next((limit for limit, count in limits if at_once + count >= share * reads), 0.0)
