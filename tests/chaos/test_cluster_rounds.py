"""Cluster rounds: their plans and figures, and one short round on real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.chaos.campaign import Campaign, Options
from tools.chaos.history import History, Mark, Operation, Outcome
from tools.chaos.profiles import CLUSTER, profile_of
from tools.chaos.replication.faults import CLUSTER_FAULTS
from tools.chaos.replication.figures import SECOND, figures
from tools.chaos.replication.fleet import ASYNCHRONOUS, QUORUM
from tools.chaos.replication.plan import ASYNCHRONOUS_ROUNDS, draw_cluster
from tools.chaos.replication.read_metrics import counted, replica_share, wait_bound
from tools.chaos.replication.totals import ClusterTotals, quantile
from tools.chaos.replication.workload import DEFAULTS, FIRST

SECONDS = 8.0
"""Duration of a round, in which it has two faults."""

SEED = 39
"""The first fault of this seed is a primary that returns as a second one."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="faults use /proc and signals")


@linux
@pytest.mark.timeout(900)
async def test_short_cluster_round_finds_no_violation(tmp_path: Path) -> None:
    options = Options(1, SEED, tmp_path, seconds=SECONDS, profile=CLUSTER)
    totals = await Campaign(options, print).run()
    assert not totals.failed, totals.failed
    found = totals.cluster.as_json()
    assert found["failovers"] >= 1
    assert found["second_primaries"] >= 1
    assert found["default_failed"] == 0
    assert totals.calls["acknowledged"] > 0
    assert {"at_least", "any_replica", "latest"} == found["reads"].keys()
    assert "Former primaries back     1" in totals.text()


def test_seed_of_the_short_round() -> None:
    plan = draw_cluster(SEED, SECONDS)
    assert plan.replication == QUORUM
    assert "second primary" in plan.steps[0].name
    assert CLUSTER_FAULTS[plan.steps[0].name].promotes


def test_seed_determines_cluster_plan() -> None:
    plans = [draw_cluster(seed) for seed in range(40)]
    assert plans == [draw_cluster(seed) for seed in range(40)]
    drawn = {name for plan in plans for name in plan.fault_names}
    assert drawn == CLUSTER_FAULTS.keys()
    modes = [plan.replication for plan in plans[:ASYNCHRONOUS_ROUNDS]]
    assert sorted(modes) == [ASYNCHRONOUS, *[QUORUM] * (ASYNCHRONOUS_ROUNDS - 1)]


def test_planted_faults_choose_their_profile() -> None:
    assert profile_of("ignore-timeline", "migration") == CLUSTER
    assert profile_of("drop-journal-row", CLUSTER) == "migration"
    assert profile_of("", CLUSTER) == CLUSTER


def _save(history: History, client: int, server: int, end: float, code: str = "") -> None:
    at = int(end * SECOND)
    outcome = Outcome.UNKNOWN if code else Outcome.OK
    args = {"value": {"id": "a"}, "server": server}
    history.add(Operation(len(history), client, "Save", args, at - 1, at, outcome, {}, code, code))


def _failover() -> History:
    """Return a history of one failover: lost at 10 s, promoted at 11 s."""
    history = History()
    for kind, at in (("primary lost", 10), ("promoted", 11), ("whole", 20)):
        history.add(Mark(kind, at * SECOND, {}))
    for server, end in ((1, 9.5), (1, 11.4), (2, 9.75), (2, 11.5), (2, 12)):
        _save(history, FIRST + server, server, end)
    return history


def test_recovery_is_that_of_the_slowest_server() -> None:
    found = figures(_failover())
    assert found["failovers"] == 1
    assert found["recovery"] == [0.5]
    assert found["outages"] == [1.0]
    assert found["gaps"] == [1.65]


def test_recovery_of_a_server_that_was_down_is_not_counted() -> None:
    history = _failover()
    history.marks.insert(0, Mark("server", 10 * SECOND, {"state": "down", "number": 2}))
    assert figures(history)["recovery"] == [0.4]
    history.marks.append(Mark("server", int(11.3 * SECOND), {"state": "up", "number": 2}))
    assert figures(history)["recovery"] == [0.4]


@pytest.mark.parametrize(("ends", "expected"), [(10.5, [0.5]), (11.2, []), (None, [])])
def test_recovery_during_another_fault_is_not_counted(
    ends: float | None, expected: list[float]
) -> None:
    history = _failover()
    facts = {"name": "PostgreSQL: standby frozen", "number": 3}
    history.marks.append(Mark("fault begins", 10 * SECOND, facts))
    if ends is not None:
        history.marks.append(Mark("fault ends", int(ends * SECOND), facts))
    assert figures(history)["recovery"] == expected


def test_failed_calls_of_the_default_policy() -> None:
    history = _failover()
    _save(history, DEFAULTS, 1, 15)
    _save(history, DEFAULTS, 1, 16, "UNAVAILABLE")
    _save(history, DEFAULTS, 1, 17, "NOT_REPLICATED")
    found = figures(history)
    counted = (found["default_calls"], found["default_failed"], found["default_refused"])
    assert counted == (3, 1, 1)


def test_totals_of_rounds() -> None:
    totals = ClusterTotals()
    assert totals.as_json() == {}
    assert totals.text() == []
    for mode in (QUORUM, QUORUM, ASYNCHRONOUS):
        plan = {"replication": mode}
        totals.add({"cluster": figures(_failover()), "plan": plan, "seconds": 30.0})
    found = totals.as_json()
    assert (found["failovers"], found["quorum failovers"]) == (3, 2)
    assert found["failovers_per_minute"] == 2.0
    assert found["recovery"] == {"count": 2, "median": 0.5, "p95": 0.5, "max": 0.5}
    assert "Failovers                 3 (2 with quorum commit)" in "\n".join(totals.text())
    assert quantile([4, 1, 3, 2], 0.5) == 3


def test_reads_of_replicas() -> None:
    samples = {
        'sagastore_postgres_reads_total{node="primary",requirement="at_least"}': 4.0,
        'sagastore_postgres_reads_total{node="2",requirement="at_least"}': 36.0,
        'sagastore_postgres_reads_total{node="3",requirement="at_least"}': 60.0,
        'sagastore_postgres_reads_total{node="primary",requirement="latest"}': 9.0,
        'sagastore_replica_wait_seconds_bucket{le="0.004"}': 5.0,
        'sagastore_replica_wait_seconds_bucket{le="0.05"}': 7.0,
        'sagastore_replica_wait_seconds_bucket{le="+Inf"}': 8.0,
        "sagastore_replica_wait_seconds_count": 8.0,
    }
    counts = counted(samples)
    assert replica_share(counts, "at_least") == 0.96
    assert replica_share(counts, "latest") == 0.0
    assert [wait_bound(counts, share) for share in (0.9, 0.95, 0.99)] == [0.0, 0.004, 0.05]
