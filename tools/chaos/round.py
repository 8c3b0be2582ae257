"""One round: processes, clients, faults and an operator, then a comparison of all data."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagastore import Phase, SagaStoreError
from tools.chaos.cluster import Cluster, Ending, Testbed
from tools.chaos.convergence import compare
from tools.chaos.fault_registry import Scene
from tools.chaos.history import History
from tools.chaos.lease_takeover import TIMEOUT, take_over
from tools.chaos.log_check import LogLine, defects
from tools.chaos.nemesis import Nemesis, Operator
from tools.chaos.plan import Plan
from tools.chaos.store_inspection import inspect_store
from tools.chaos.templates import Templates
from tools.chaos.workload import Workload

CLIENTS = 8

_SETTINGS = {
    "SAGASTORE_POSTGRES_POOL_MIN": "1",
    "SAGASTORE_POSTGRES_POOL_MAX": "10",
    "SAGASTORE_POSTGRES_ACQUIRE_TIMEOUT": "2",
    "SAGASTORE_POSTGRES_STATEMENT_TIMEOUT": "4",
    "SAGASTORE_SHADOW_SHARE": "0.5",
    "SAGASTORE_DRAIN_SECONDS": "2",
}

_KILLED = {9, 15}


@dataclass
class Round:
    """Result of a round."""

    plan: Plan
    plant: str
    ended_in: str = ""
    wrong: list[str] = field(default_factory=list)
    """Findings besides those of the history checker."""
    starts: int = 0
    """Number of server starts."""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the result as it is saved."""
        plan = self.plan._asdict() | {
            "begins": self.plan.begins.label,
            "faults": [one._asdict() for one in self.plan.faults],
        }
        return {**self.__dict__, "plan": plan}


async def run_round(
    testbed: Testbed, templates: Templates, plan: Plan, plant: str, folder: Path
) -> Round:
    """Run a round; leave its history and log in ``folder``."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    history, result = History(), Round(plan, plant)
    cluster = Cluster(testbed, f"round_{plan.seed}_{plant.replace('-', '_')}"[:60])
    try:
        await templates.copy_to(plan.origin, plan.begins, cluster.disk.folder, cluster.database)
        patience = {"SAGASTORE_POSTGRES_PATIENCE": str(plan.patience)}
        await cluster.open(
            _SETTINGS | patience,
            plant,
            lambda state: history.mark("server", state=state),
            clock=plan.needs_clock,
        )
        await _live(cluster, plan, history, result)
    except Exception as exc:  # noqa: BLE001 - a round that fails in any way must be as_json of
        result.wrong.append(f"NOT ENDED: the round failed: {exc!r}")
    finally:
        result.seconds = loop.time() - began
        await _clear(cluster, folder, history, result)
    return result


async def _live(cluster: Cluster, plan: Plan, history: History, result: Round) -> None:
    stop = asyncio.Event()
    timeout = TIMEOUT if plan.takes_over else None
    workload = Workload(cluster.address, plan.seed, history, clients=CLIENTS, timeout=timeout)
    operator = Operator(plan, cluster, history)
    watching = asyncio.create_task(operator.watch(), name="watch")
    working = asyncio.create_task(workload.run(stop), name="workload")
    store_inspection = asyncio.create_task(
        inspect_store(cluster, history, plan.rng("peek")), name="store inspection"
    )
    try:
        history.mark("round begins", begins=plan.begins.label)
        await operator.begin()
        if plan.takes_over:
            await take_over(Scene(cluster, plan.rng("takeover"), history), plan)
            operator.switch_to(cluster.server.address)
        async with asyncio.TaskGroup() as group:
            group.create_task(Nemesis(plan, cluster, history).run())
            if plan.steers:
                group.create_task(operator.operate())
        await cluster.recover()
        history.mark("recovered")
        phase = (await operator.finish()).phase
        result.ended_in = phase.label
        stop.set()
        async with asyncio.timeout(180):
            await working
            await workload.settle()
        history.mark("settled")
        await _until_settled(operator)
    finally:
        for task in (watching, working, store_inspection):
            task.cancel()
        await asyncio.gather(watching, working, store_inspection, return_exceptions=True)
        await operator.close()
    await _end(cluster, phase, result)


async def _until_settled(operator: Operator) -> None:
    """Wait until the journal is empty."""
    async with asyncio.timeout(120):
        while True:
            try:
                status = await operator.refresh()
            except SagaStoreError:
                status = None
            if status is not None and not status.journal_rows:
                return
            await asyncio.sleep(0.1)


async def _end(cluster: Cluster, phase: Phase, result: Round) -> None:
    ending = await cluster.supervisor.end()
    if ending.status:
        result.wrong.append(f"STOP: the server did not stop cleanly: {ending}")
        return
    differences = await compare(cluster.path, cluster.testbed.dsn(cluster.database), phase)
    result.wrong += [f"STORES DIFFER: {line}" for line in differences]


async def _clear(cluster: Cluster, folder: Path, history: History, result: Round) -> None:
    """End all processes, collect findings, and clean up."""
    if hasattr(cluster, "supervisor"):
        said: list[LogLine] = []
        for supervisor in (*cluster.former, cluster.supervisor):
            await supervisor.abandon()
            result.starts += supervisor.starts
            result.wrong += wrong_endings(supervisor.endings)
            said += supervisor.server.said
        result.wrong += [f"LOG: {line}" for line in defects(said, history)][:5]
        text = "".join(f"{line.text}\n" for line in said)
        (folder / "server.log").write_text(text, encoding="utf-8")
    result.wrong += wrong_marks(history)
    history.save(folder / "history.jsonl")
    (folder / "round.json").write_text(json.dumps(result.as_json(), indent=2, default=str))
    try:
        await cluster.recover()
        await cluster.testbed.drop(cluster.database)
    finally:
        cluster.close()


def wrong_endings(endings: list[Ending]) -> list[str]:
    """Find processes that ended unexpectedly while serving."""
    return [
        f"UNEXPECTED EXIT: {ending}"
        for ending in endings
        if ending.served and not ending.asked & _KILLED
    ]


def wrong_marks(history: History) -> list[str]:
    """Return the findings that components of the round have recorded in the history."""
    found = [str(mark.facts["what"]) for mark in history.marks if mark.kind == "wrong"]
    for mark in history.marks:
        facts = mark.facts
        if mark.kind == "second server" and facts["served"] and not facts["may"]:
            found.append(f"SECOND SERVER: a second server served ({facts['how']})")
        if mark.kind == "backup" and "Traceback" in facts["said"]:
            found.append(f"BACKUP: {facts['said']}")
    return list(dict.fromkeys(found))
