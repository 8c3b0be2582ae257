"""Nemesis and operator: inject the faults of a plan and control the migration meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

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
"""Blockers that no injected fault explains: the stores differ, or another server interferes."""

DIFFER = {"VERIFICATION", "VERIFICATION_MISMATCH", "SHADOW_READS_DIFFER"}
"""Blockers that are expected for a while after PostgreSQL was set back."""


class Nemesis:
    """Injects the faults of a plan."""

    def __init__(self, plan: Plan, cluster: Cluster, history: History) -> None:
        """Create the nemesis of ``cluster``."""
        self._plan = plan
        self._cluster = cluster
        self._history = history

    async def run(self) -> None:
        """Execute the plan; all faults have ended on return."""
        async with asyncio.TaskGroup() as group:
            for planned in self._plan.faults:
                group.create_task(self._inject(planned))
            await asyncio.sleep(self._plan.seconds)

    async def _inject(self, planned: Planned) -> None:
        await asyncio.sleep(planned.at)
        scene = Scene(self._cluster, self._plan.rng(f"fault {planned.number}"), self._history)
        facts = {"name": planned.name, "number": planned.number}
        self._history.mark("fault due", **facts)
        try:
            async with FAULTS[planned.name].apply(scene):
                self._history.mark("fault begins", **facts)
                await asyncio.sleep(planned.seconds)
        except OSError as exc:
            # The target of the fault no longer exists.
            self._history.mark("fault failed", **facts, why=repr(exc))
        self._history.mark("fault ends", **facts)


class Operator:
    """Operator: monitors the migration and controls it at random."""

    def __init__(self, plan: Plan, cluster: Cluster, history: History) -> None:
        """Control the server of ``cluster``, bypassing the proxy; records the ``phase`` marks."""
        self._plan = plan
        self._cluster = cluster
        self._history = history
        self._rng = plan.rng("operator")
        self._seen: tuple[object, ...] = ()
        self._epoch = 0
        self._under_way: Phase | None = None
        self._slowdowns: asyncio.Task[None] | None = None
        self._first = self._client = AsyncClient(cluster.server.address, retry=ONCE, timeout=4)
        self.status: Migration | None = None
        """Latest observed state."""
        self.clean = True
        """Whether no forbidden state was observed."""
        self._compared_after_faults = False
        """Whether the stores were compared after all faults had ended."""

    async def close(self) -> None:
        if self._slowdowns is not None:
            self._slowdowns.cancel()
        for client in {self._first, self._client}:
            await client.close()

    def switch_to(self, address: str) -> None:
        """Control the server that has taken over from now on."""
        self._client = AsyncClient(address, retry=ONCE, timeout=4)

    # ------------------------------------------------------------------ monitoring

    async def watch(self) -> None:
        """Record each observable change until cancelled."""
        while True:
            client = self._client
            with contextlib.suppress(SagaStoreError):
                # The answer of the first server may come after the switch to the second one.
                self.observe(await client.migration.get(timeout=1.0), client)
            await asyncio.sleep(0.15)

    async def refresh(self) -> Migration:
        """Return the current state of the migration.

        Raises:
            SagaStoreError: The service does not answer.
        """
        status = await self._client.migration.get(timeout=2.0)
        self.observe(status, self._client)
        return status

    def observe(self, status: Migration, client: AsyncClient) -> None:
        """Record changes, and report forbidden states; ``client`` is that of the server."""
        if status.epoch < self._epoch:
            return  # An outdated answer.
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
            if blocker.reason != "NOT_THE_HOLDER" or not self._is_taken_over(client):
                self._report_violation(f"{blocker.reason}: {blocker.detail}")

    def _is_taken_over(self, client: AsyncClient) -> bool:
        """Return whether ``client`` is that of a server from which another one takes over."""
        return self._plan.takes_over and client is self._first

    def _report_violation(self, what: str) -> None:
        reason = what.partition(":")[0]
        if reason in DIFFER and self._may_differ:
            self._history.mark("excused", what=what)
            return
        self.clean = False
        self._history.mark("wrong", what=what)

    @property
    def _may_differ(self) -> bool:
        """Whether the stores may differ: PostgreSQL was set back and not compared since."""
        return not self._compared_after_faults and any(
            mark.kind == "set back" for mark in self._history.marks
        )

    # ------------------------------------------------------------------ actions

    async def begin(self) -> None:
        """Resume a started backfill at a limited rate."""
        if self._plan.begins is Phase.BACKFILL:
            if self._rng.random() < 0.6:
                self._slowdowns = asyncio.create_task(
                    self._slow_down_backfill(self._rng.uniform(1.0, 3.0))
                )
            await self._try("resume", self._pace)

    async def operate(self) -> None:
        """Perform random actions until the time of the round is over."""
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
            # A verification is the best test that every write since then was journalled.
            await self._try("verify", self._verify)
        return done

    async def _back(self) -> str | None:
        status = await self._client.migration.get(timeout=1.0)
        if status.phase in {Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY}:
            return None
        return await self._change(Phase(status.phase - 1))

    async def _change(self, phase: Phase, patience: float = 4.0, risk: float = 0.4) -> str:
        """Change the phase; sometimes a fault is injected during the change."""
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
        self.observe(done, self._client)
        return done.phase.label

    async def _inject_at_change(self, phase: Phase) -> None:
        """Inject a fault at the moment of a change, which is requested 0.2 s after this starts."""
        rng = self._rng
        ways = ["kill", "kill", "cut", "slow PostgreSQL", "slow PostgreSQL"]
        if phase is Phase.POSTGRES_ONLY:
            ways += ["kill when PostgreSQL has taken over"] * 5 + ["slow PostgreSQL"] * 3
        if phase is Phase.DUAL_WRITE and self._cluster.switches is not None:
            ways += ["clients leave"] * 4
        how = rng.choice(ways)
        with self._tripping(how):
            await self._trip(how, phase)

    @contextlib.contextmanager
    def _tripping(self, how: str) -> Iterator[None]:
        self._history.mark("tripped", how=how)
        try:
            yield
        finally:
            self._history.mark("trip ends", how=how)

    async def _trip(self, how: str, phase: Phase) -> None:
        rng = self._rng
        if how == "slow PostgreSQL":
            await self._slow_down_postgresql(
                rng.uniform(0.4, 2.5 if phase is Phase.BACKFILL else 1.2)
            )
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
                self._cluster.testbed.proxy.cut(POSTGRES)

    async def _slow_down_backfill(self, seconds: float) -> None:
        with self._tripping("slow PostgreSQL"):
            await self._slow_down_postgresql(seconds)

    async def _slow_down_postgresql(self, seconds: float) -> None:
        """Slow PostgreSQL down during a change, or while rows are copied."""
        proxy = self._cluster.testbed.proxy
        proxy.set(POSTGRES, delay=self._rng.choice([0.03, 0.1, 0.25]))
        await asyncio.sleep(seconds)
        proxy.set(POSTGRES)

    async def _disconnect_clients(self) -> None:
        """Disconnect clients while SQLite still commits their writes."""
        with self._cluster.switch("commits wait", self._rng.choice([0.5, 0.9])):
            # Most likely while the change holds writes and waits for calls in progress.
            await asyncio.sleep(0.2 + self._rng.uniform(0.1, 0.8))
            self._cluster.testbed.proxy.cut(CLIENTS)
            await asyncio.sleep(1.0)

    async def _wait_until_completed(self) -> None:
        """Poll PostgreSQL for a while until it is the only store."""
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
        return f"{size} rows per batch, {rate} per second"

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
        """Bring the migration to its final state without faults: complete, or settled.

        Raises:
            TimeoutError: The state is not reached.
        """
        goal = Phase.POSTGRES_ONLY if self._plan.completes else None
        if goal is None and self._plan.steers and self._rng.random() < 0.4:
            goal = Phase.READ_POSTGRES
        async with asyncio.timeout(180):
            while True:
                with contextlib.suppress(SagaStoreError):
                    status = await self._client.migration.get(timeout=2.0)
                    if self._may_differ and _settled(status):
                        await self._compare_after_faults()
                        continue
                    self.observe(status, self._client)
                    if not self.clean or goal is None or status.phase >= goal:
                        if _settled(status):
                            return status
                    else:
                        await self._advance_towards_completion(status)
                await asyncio.sleep(0.1)

    async def _compare_after_faults(self) -> None:
        """Compare the stores once PostgreSQL has caught up; they must not differ any more."""
        with contextlib.suppress(FailedPreconditionError):
            async with contextlib.aclosing(self._client.migration.verify(timeout=20.0)) as steps:
                async for progress in steps:
                    last = progress
            if last.mismatch_count:
                self._history.mark(
                    "wrong", what=f"VERIFICATION: {last.mismatches} after PostgreSQL was set back"
                )
                self.clean = False
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
    """Return whether PostgreSQL has all its rows, and answers reads if it should."""
    if status.phase in {Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY}:
        return True
    return not status.journal_rows and not status.reads_from_fallback
