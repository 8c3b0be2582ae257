"""One cluster round: three nodes, three servers, clients, and faults one after the other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from sagastore import Phase
from tools.chaos.cluster import Ending
from tools.chaos.history import History
from tools.chaos.log_check import LogLine, defects
from tools.chaos.replication.faults import CLUSTER_FAULTS, Scene
from tools.chaos.replication.fleet import ASYNCHRONOUS, ClusterBed, Fleet
from tools.chaos.replication.plan import ClusterPlan, Step
from tools.chaos.replication.workload import ClusterWorkload
from tools.chaos.round import wrong_endings, wrong_marks

STEP = 180.0
"""Seconds that a fault may take in all, on a busy machine."""

SETTLE = 240.0
"""Seconds in which everything must have been read at the end."""


class ClusterRound:
    """A round, and what was found."""

    def __init__(self, bed: ClusterBed, plan: ClusterPlan, plant: str) -> None:
        """Prepare a round on ``bed``; ``plant`` names the planted fault, if any."""
        self._bed = bed
        self._plan = plan
        self._plant = plant
        self._history = History()
        self._fleet: Fleet | None = None
        self._wrong: list[str] = []
        self._starts = 0
        self._read_counts: dict[str, int] = {}
        self._said: list[LogLine] = []

    async def run(self, folder: Path) -> None:
        """Run it; leave its history and its log in ``folder``."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._bed.begin(self._plan.replication, self._history)
            database = f"round_{self._plan.seed}"
            self._fleet = Fleet(self._bed, database, self._plant, self._history)
            await self._fleet.open()
            await self._live(self._fleet)
        except Exception as exc:  # noqa: BLE001 - a round that fails in any way is a finding
            self._wrong.append(f"NOT ENDED: the round failed: {exc!r}")
        finally:
            await self._clear()
            self._save(folder, loop.time() - began)

    async def _live(self, fleet: Fleet) -> None:
        stop = asyncio.Event()
        workload = ClusterWorkload(fleet.addresses, self._plan.seed, self._history)
        self._history.mark("phase", phase=Phase.POSTGRES_ONLY.label, epoch=0, reads="POSTGRESQL")
        working = asyncio.create_task(workload.run(stop), name="workload")
        try:
            await workload.written.wait()
            self._history.mark("round begins", begins=Phase.POSTGRES_ONLY.label)
            for step in self._plan.steps:
                await self._step(fleet, step)
            await self._bed.manager.recover()
            self._history.mark("recovered")
            stop.set()
            async with asyncio.timeout(SETTLE):
                await working
                await workload.settle()
            self._history.mark("settled")
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        self._read_counts = dict(await fleet.read_counts())
        for supervisor in fleet.supervisors:
            self._judge_end(await supervisor.end())

    def _judge_end(self, ending: Ending) -> None:
        if ending.status:
            self._wrong.append(f"STOP: a server did not stop cleanly: {ending}")

    # ------------------------------------------------------------------ faults

    async def _step(self, fleet: Fleet, step: Step) -> None:
        """Run a fault, and wait until three nodes replicate again."""
        await asyncio.sleep(step.after)
        async with asyncio.timeout(STEP), asyncio.TaskGroup() as group:
            group.create_task(self._inject(fleet, step.name, 2 * step.number))
            if step.companion:
                await asyncio.sleep(step.companion_after)
                group.create_task(self._inject(fleet, step.companion, 2 * step.number + 1))
        async with asyncio.timeout(STEP):
            await self._bed.manager.until_whole()
        self._history.mark("whole")

    async def _inject(self, fleet: Fleet, name: str, number: int) -> None:
        facts = {"name": name, "number": number}
        scene = Scene(self._bed, fleet, self._plan.rng(f"fault {number}"), self._history)
        self._history.mark("fault due", **facts)
        self._history.mark("fault begins", **facts)
        await CLUSTER_FAULTS[name].run(scene)
        self._history.mark("fault ends", **facts)

    # ------------------------------------------------------------------ the end

    async def _clear(self) -> None:
        fleet = self._fleet
        if fleet is None:
            return
        try:
            await fleet.close()
        except Exception as exc:  # noqa: BLE001 - reported with the round
            self._wrong.append(f"NOT ENDED: the nodes did not recover: {exc!r}")
        for supervisor in fleet.supervisors:
            self._starts += supervisor.starts
            self._wrong += wrong_endings(supervisor.endings)
            self._said += supervisor.server.said
        self._wrong += [f"LOG: {line}" for line in defects(self._said, self._history)][:5]
        found = wrong_marks(self._history)
        if self._plan.replication == ASYNCHRONOUS:
            # Turns of sessions are lost like all other writes.
            found = [what for what in found if not what.startswith("SESSIONS")]
        self._wrong += found

    def _save(self, folder: Path, seconds: float) -> None:
        text = "".join(f"{line.text}\n" for line in self._said)
        (folder / "server.log").write_text(text, encoding="utf-8")
        for name, log in self._bed.nodes.logs().items():
            (folder / f"{name}.log").write_text(log, encoding="utf-8")
        self._history.save(folder / "history.jsonl")
        (folder / "round.json").write_text(json.dumps(self._as_json(seconds), indent=2))

    def _as_json(self, seconds: float) -> dict[str, Any]:
        plan = self._plan._asdict() | {
            "begins": Phase.POSTGRES_ONLY.label,
            "origin": f"cluster, {self._plan.replication}",
            "steps": [step._asdict() for step in self._plan.steps],
        }
        return {
            "plan": plan,
            "plant": self._plant,
            "ended_in": Phase.POSTGRES_ONLY.label,
            "wrong": self._wrong,
            "read_counts": self._read_counts,
            "starts": self._starts,
            "seconds": seconds,
        }
