"""Carries out a plan: lets faults come and go, and steers the migration meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable

import asyncpg

from sagastore import (
    AsyncClient,
    FailedPreconditionError,
    Migration,
    Phase,
    SagaStoreError,
)
from tools.chaos.cluster import CLIENTS, POSTGRES, Cluster
from tools.chaos.faults import FAULTS, ONCE, Scene
from tools.chaos.history import History
from tools.chaos.plan import Plan, Planned

NEVER = {
    "VERIFICATION_MISMATCH",
    "SHADOW_READS_DIFFER",
    "NOT_THE_HOLDER",
    "OTHER_MIGRATION",
    "SOURCE_IS_OLD",
    "TARGET_NOT_EMPTY",
    "TARGET_UNKNOWN",
    "MIGRATION_FINISHED",
}
"""Blockers that no fault of ours explains: the stores differ, or somebody else is there."""

DIFFER = {"VERIFICATION", "VERIFICATION_MISMATCH", "SHADOW_READS_DIFFER"}
"""What is true for a while after PostgreSQL was set back."""


class Nemesis:
    """Lets the faults of a plan happen."""

    def __init__(self, plan: Plan, cluster: Cluster, history: History) -> None:
        """Prepare to hurt ``cluster``."""
        self._plan = plan
        self._cluster = cluster
        self._history = history

    async def run(self) -> None:
        """Go through the plan; all faults have ended when this returns."""
        async with asyncio.TaskGroup() as group:
            for planned in self._plan.faults:
                group.create_task(self._inject(planned))
            await asyncio.sleep(self._plan.seconds)

    async def _inject(self, planned: Planned) -> None:
        await asyncio.sleep(planned.at)
        scene = Scene(self._cluster, self._plan.rng(f"fault {planned.number}"), self._history)
        facts = {"name": planned.name, "number": planned.number}
        try:
            async with FAULTS[planned.name].apply(scene):
                self._history.mark("fault begins", **facts)
                await asyncio.sleep(planned.seconds)
        except OSError as exc:
            # What it was to hurt is gone already.
            self._history.mark("fault came to nothing", **facts, why=repr(exc))
        self._history.mark("fault ends", **facts)


class Operator:
    """Looks at the migration all the time, and steers it at random."""

    def __init__(self, plan: Plan, cluster: Cluster, history: History) -> None:
        """Steer the server of ``cluster``, past the proxy; ``phase`` marks are from here."""
        self._plan = plan
        self._cluster = cluster
        self._history = history
        self._rng = plan.rng("operator")
        self._seen: tuple[object, ...] = ()
        self._epoch = 0
        self._under_way: Phase | None = None
        self._slowing: asyncio.Task[None] | None = None
        self._client = AsyncClient(cluster.server.address, retry=ONCE, timeout=4)
        self._former: list[AsyncClient] = []
        self.status: Migration | None = None
        """What was seen last."""
        self.content = True
        """Whether nothing was seen that must never be."""
        self._compared_after_faults = False
        """Whether the stores were compared after all faults had ended."""

    async def close(self) -> None:
        """Close the connection."""
        if self._slowing is not None:
            self._slowing.cancel()
        for client in (*self._former, self._client):
            await client.close()

    def switch_to(self, address: str) -> None:
        """Steer another server from now on."""
        self._former.append(self._client)
        self._client = AsyncClient(address, retry=ONCE, timeout=4)

    # ------------------------------------------------------------------ looking

    async def watch(self) -> None:
        """Take down each change that can be seen, until cancelled."""
        while True:
            with contextlib.suppress(SagaStoreError):
                self.saw(await self._client.migration.get(timeout=1.0))
            await asyncio.sleep(0.15)

    async def look(self) -> Migration:
        """Return how it stands, now.

        Raises:
            SagaStoreError: Nobody answers.

        """
        status = await self._client.migration.get(timeout=2.0)
        self.saw(status)
        return status

    def saw(self, status: Migration) -> None:
        """Take down what is new, and what must never be."""
        if status.epoch < self._epoch:
            return  # An answer that was overtaken.
        self.status, self._epoch = status, status.epoch
        seen = (status.phase, status.epoch, status.reads_from)
        if seen != self._seen:
            self._seen = seen
            self._history.mark(
                "phase",
                phase=status.phase.label,
                epoch=status.epoch,
                reads=status.reads_from.name,
            )
            if self._under_way is not None:
                self._history.mark("phase-change", to=self._under_way.label)
        wrong = [b for b in status.blockers_to_next if b.reason in NEVER]
        last = status.last_verification
        if last is not None and last.mismatch_count:
            self._report_violation(f"VERIFICATION: {last.mismatch_count} rows differ")
        for blocker in wrong:
            self._report_violation(f"{blocker.reason}: {blocker.detail}")

    def _report_violation(self, what: str) -> None:
        if what.partition(":")[0] in DIFFER and self._may_differ:
            self._history.mark("excused", what=what)
            return
        self.content = False
        self._history.mark("wrong", what=what)

    @property
    def _may_differ(self) -> bool:
        """Whether the stores may differ: PostgreSQL was set back, and not compared since."""
        return not self._compared_after_faults and any(
            mark.kind == "set back" for mark in self._history.marks
        )

    # ------------------------------------------------------------------ steering

    async def begin(self) -> None:
        """Let a backfill that was begun go on, at a pace."""
        if self._plan.begins is Phase.BACKFILL:
            if self._rng.random() < 0.6:
                self._slowing = asyncio.create_task(self._slow(self._rng.uniform(1.0, 3.0)))
            await self._try("resume", self._pace)

    async def steer(self) -> None:
        """Do one thing after the other, until the round's time is over."""
        actions: dict[str, tuple[float, Callable[[], Awaitable[object]]]] = {
            "forward": (5, self._forward),
            "back": (1.2, self._back),
            "pause": (0.6, self._pause),
            "resume": (1.5, self._pace),
            "verify": (0.8, self._verify),
            "repair": (0.6, self._repair),
        }
        weights = [weight for weight, _ in actions.values()]
        until = time.monotonic() + self._plan.seconds
        while time.monotonic() < until:
            name = self._rng.choices(list(actions), weights)[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(6):
                    await self._try(name, actions[name][1])
            await asyncio.sleep(self._rng.uniform(0.1, 0.8))

    async def _try(self, name: str, action: Callable[[], Awaitable[object]]) -> None:
        try:
            done = await action()
        except FailedPreconditionError as exc:
            reasons = [violation.type for violation in exc.violations]
            self._history.mark("operator", did=name, refused=reasons)
            for violation in exc.violations:
                if violation.type in NEVER:
                    self._report_violation(f"{violation.type}: ({name}) {violation.description}")
        except SagaStoreError as exc:
            self._history.mark("operator", did=name, failed=str(exc.code), why=str(exc)[:200])
        else:
            if done is not None:
                self._history.mark("operator", did=name, done=str(done))

    async def _forward(self) -> str | None:
        status = await self._client.migration.get(timeout=1.0)
        if status.phase >= Phase.READ_POSTGRES:
            return None
        if status.phase is not Phase.SQLITE_ONLY:
            return await self._change(Phase(status.phase + 1))
        done = await self._change(Phase.DUAL_WRITE, risk=0.6)
        if self._rng.random() < 0.6:
            # Whether every write from then on is journalled, nothing shows as well as this.
            await self._try("verify", self._verify)
        return done

    async def _back(self) -> str | None:
        status = await self._client.migration.get(timeout=1.0)
        if status.phase in {Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY}:
            return None
        return await self._change(Phase(status.phase - 1))

    async def _change(self, phase: Phase, patience: float = 4.0, risk: float = 0.4) -> str:
        """Change the phase; now and then something happens in that very moment."""
        trip = (
            asyncio.create_task(self._inject_at_change(phase))
            if self._rng.random() < risk
            else None
        )
        if trip is not None:
            await asyncio.sleep(0.2)
        try:
            return await self._changed(phase, patience)
        finally:
            if trip is not None:
                await trip

    async def _changed(self, phase: Phase, patience: float) -> str:
        self._under_way = phase
        self._history.mark("phase-change", to=phase.label)
        try:
            done = await self._client.migration.change_phase(
                phase, accept_quarantine=True, timeout=patience
            )
        finally:
            self._under_way = None
        self.saw(done)
        return done.phase.label

    async def _inject_at_change(self, phase: Phase) -> None:
        """Hurt something at the moment of a change, which is asked for 0.2 s after this begins."""
        proxy, rng = self._cluster.testbed.proxy, self._rng
        ways = ["kill", "kill", "cut", "slow PostgreSQL", "slow PostgreSQL"]
        if phase is Phase.POSTGRES_ONLY:
            ways += ["kill when PostgreSQL has taken over"] * 5 + ["slow PostgreSQL"] * 3
        if phase is Phase.DUAL_WRITE and self._cluster.switches is not None:
            ways += ["clients leave"] * 4
        how = rng.choice(ways)
        self._history.mark("tripped", how=how)
        if how == "slow PostgreSQL":
            await self._slow(rng.uniform(0.4, 2.5 if phase is Phase.BACKFILL else 1.2))
        elif how == "clients leave":
            await self._disconnect_clients()
        elif how == "kill when PostgreSQL has taken over":
            await self._wait_until_completed()
            self._cluster.supervisor.signal(signal.SIGKILL)
        else:
            await asyncio.sleep(0.2 + rng.uniform(0, 0.3))
            if how == "kill":
                self._cluster.supervisor.signal(signal.SIGKILL)
            else:
                proxy.cut(POSTGRES)

    async def _slow(self, seconds: float) -> None:
        """Let PostgreSQL be behind when a change comes, or while rows are copied."""
        proxy = self._cluster.testbed.proxy
        proxy.set(POSTGRES, delay=self._rng.choice([0.03, 0.1, 0.25]))
        await asyncio.sleep(seconds)
        proxy.set(POSTGRES)

    async def _disconnect_clients(self) -> None:
        """Let clients go away while SQLite still commits what they have sent."""
        with self._cluster.switch("commits wait", self._rng.choice([0.5, 0.9])):
            # Most likely while the change holds the writes, and waits for those under way.
            await asyncio.sleep(0.2 + self._rng.uniform(0.1, 0.8))
            self._cluster.testbed.proxy.cut(CLIENTS)
            await asyncio.sleep(1.0)

    async def _wait_until_completed(self) -> None:
        """Ask PostgreSQL itself, for a while, whether it is the only store."""
        testbed = self._cluster.testbed
        with contextlib.suppress(OSError, asyncpg.PostgresError, TimeoutError):
            connection = await asyncpg.connect(testbed.dsn(self._cluster.database))
            try:
                async with asyncio.timeout(3):
                    while await connection.fetchval("SELECT phase FROM migration") != 5:  # noqa: ASYNC110
                        await asyncio.sleep(0.002)
            finally:
                await connection.close()

    async def _pause(self) -> str:
        await self._client.migration.control_backfill(paused=True)
        return "paused"

    async def _pace(self) -> str:
        size = self._rng.choice([5, 20, 100, 1000])
        rate = self._rng.choice([0, 0, 100, 400])
        await self._client.migration.control_backfill(
            paused=False, batch_size=size, max_rows_per_second=rate
        )
        return f"{size} rows at a time, {rate} a second"

    async def _verify(self) -> str:
        return await self._compare(repair=False)

    async def _repair(self) -> str:
        return await self._compare(repair=True)

    async def _compare(self, *, repair: bool) -> str:
        compared = 0
        async with contextlib.aclosing(
            self._client.migration.verify(repair=repair, timeout=5.0)
        ) as steps:
            async for progress in steps:
                compared = progress.compared
                if progress.mismatch_count:
                    self._report_violation(
                        f"VERIFICATION: {progress.mismatches} (repair: {repair})"
                    )
        return f"{compared} rows"

    # ------------------------------------------------------------------ the end

    async def finish(self) -> Migration:
        """Bring the round to its end, when nothing is wrong any more: complete, or settle.

        Raises:
            TimeoutError: It does not come to that.

        """
        goal = Phase.POSTGRES_ONLY if self._plan.completes else None
        if goal is None and self._plan.steers and self._rng.random() < 0.4:
            goal = Phase.READ_POSTGRES
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(SagaStoreError):
                    status = await self._client.migration.get(timeout=2.0)
                    if self._may_differ and _settled(status):
                        await self._compare_after_faults()
                        continue
                    self.saw(status)
                    if not self.content or goal is None or status.phase >= goal:
                        if _settled(status):
                            return status
                    else:
                        await self._advance_towards_completion(status)
                await asyncio.sleep(0.1)

    async def _compare_after_faults(self) -> None:
        """Compare the stores now that PostgreSQL has all again; they must not differ any more."""
        with contextlib.suppress(FailedPreconditionError):
            async with contextlib.aclosing(self._client.migration.verify(timeout=20.0)) as steps:
                async for progress in steps:
                    last = progress
            if last.mismatch_count:
                self._history.mark("wrong", what=f"VERIFICATION: {last.mismatches} after set back")
                self.content = False
        self._compared_after_faults = True

    async def _advance_towards_completion(self, status: Migration) -> None:
        if status.phase is Phase.BACKFILL:
            await self._client.migration.control_backfill(
                paused=False, batch_size=1000, max_rows_per_second=0
            )
        if {blocker.reason for blocker in status.blockers_to_next} - {"QUARANTINE_NOT_ACCEPTED"}:
            return
        risk = 0.7 if status.phase is Phase.READ_POSTGRES else 0.1
        await self._try("finish", lambda: self._change(Phase(status.phase + 1), 30.0, risk))


def _settled(status: Migration) -> bool:
    """Tell whether PostgreSQL has what it should, and answers if it should."""
    if status.phase in {Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY}:
        return True
    return not status.journal_rows and not status.reads_from_fallback
