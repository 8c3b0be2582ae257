"""Faults of PostgreSQL nodes and of several servers.

A fault is an asynchronous function that runs its whole course: what fails, how the failover manager
reacts, and how the failed part returns. All its parameters are drawn from the generator in its
`Scene`. Names of faults of nodes begin with "PostgreSQL", as `log_check` expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tools.chaos.cluster import Supervisor, send
from tools.chaos.history import History, Outcome
from tools.chaos.positions import CANCELLED, CANCELLING
from tools.chaos.replication.failover import FailoverManager
from tools.chaos.replication.fleet import ASYNCHRONOUS, ClusterBed, Fleet
from tools.chaos.replication.nodes import (
    NO_ANSWER,
    Node,
    receiving_links,
    replication_links,
    server_links,
)

DETECTION = 0.1, 0.8
"""Seconds until the failover manager notices a lost primary."""

NOTICED = 60.0
"""Seconds in which every server must have noticed a promotion, on a busy machine. Only then may a
former primary run again: before, a server that still reaches it reads from it. A failover manager
prevents that by stopping the former primary first, or by a watchdog."""

STAYS = 0.4, 1.0
"""Seconds that a former primary then runs beside the new one."""


LAG, SHORT_LAG = (2.0, 4.0), (0.2, 0.6)
"""Seconds that the standbys receive nothing before the primary is killed. PostgreSQL logs a
sequence 32 numbers ahead, so more transactions must be lost before a number is given out again.
With synchronous replication, no commit ends meanwhile."""

ALONE = 0.6
"""Share of these times in which a server reaches only the former primary. It knows the timeline of
the new one."""

_LOOK_BACK = 2_000_000_000
"""Nanoseconds; calls that write through a certain server last one second."""

START = 20.0
"""Seconds in which a server must serve after it was killed, on a busy machine. A server that waits
for a silent host does not start at all."""

_CANCEL = """
SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
"""


class Scene(NamedTuple):
    """Objects that a fault works on."""

    bed: ClusterBed
    fleet: Fleet
    rng: random.Random
    history: History

    @property
    def manager(self) -> FailoverManager:
        return self.bed.manager


Run = Callable[[Scene], Awaitable[None]]


class ClusterFault(NamedTuple):
    """Kind of fault."""

    name: str
    run: Run
    weight: float
    promotes: bool
    """Whether a standby is promoted."""
    brief: bool
    """Whether it may happen during another fault."""


CLUSTER_FAULTS: dict[str, ClusterFault] = {}


def _fault(
    name: str, weight: float = 1.0, *, promotes: bool = False, brief: bool = False
) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        CLUSTER_FAULTS[name] = ClusterFault(name, run, weight, promotes, brief)
        return run

    return register


# ---------------------------------------------------------------------- the primary is lost


async def _fail_over(scene: Scene, how: str) -> Node:
    """Promote a standby after the time that noticing takes; return the former primary."""
    primary = scene.manager.primary
    scene.history.mark("primary lost", node=primary.name, how=how)
    await asyncio.sleep(scene.rng.uniform(*DETECTION))
    return await scene.manager.promote()


async def _receivers(node: Node) -> list[int]:
    """Return the PID of the process with which a standby receives WAL, if it runs."""
    with contextlib.suppress(*NO_ANSWER):
        row = await node.row("SELECT pid FROM pg_stat_wal_receiver")
        return [] if row is None else [int(row[0])]
    return []


async def _return(scene: Scene, former: Node) -> None:
    """Let a former primary follow the new one."""
    await scene.manager.attach(former, scene.rng.choice(["rewind", "rewind", "backup"]))


async def _until_noticed(scene: Scene) -> None:
    """Wait until every running server has written on the new primary."""
    promoted = max(mark.at for mark in scene.history.marks if mark.kind == "promoted")
    async with asyncio.timeout(NOTICED):
        while not all(  # noqa: ASYNC110 - the history has no event for it
            _has_written(scene.history, server, promoted)
            for server, supervisor in enumerate(scene.fleet.supervisors, start=1)
            if supervisor.up.is_set()
        ):
            await asyncio.sleep(0.02)


def _has_written(history: History, server: int, since: int) -> bool:
    for operation in reversed(history.operations):
        if operation.start < since - _LOOK_BACK:
            return False
        written = operation.kind == "Save" and operation.outcome is Outcome.OK
        if written and operation.args.get("server") == server and (operation.end or 0) > since:
            return True
    return False


async def _live_with(scene: Scene, former: Node) -> None:
    """Let two nodes accept connections as primaries for a while.

    Often one server is cut off from the new one meanwhile, so that only the former one answers it.
    """
    scene.history.mark("second primary", node=former.name)
    links = server_links(scene.manager.primary)
    running = [
        link
        for link, supervisor in zip(links, scene.fleet.supervisors, strict=True)
        if supervisor.up.is_set()
    ]
    chosen = scene.rng.sample(running, 1) if running and scene.rng.random() < ALONE else []
    with scene.bed.nodes.cut_off(chosen, silent=scene.rng.random() < 0.3):
        await asyncio.sleep(scene.rng.uniform(*STAYS))
    scene.history.mark("second primary ends", node=former.name)


@_fault("PostgreSQL: primary killed", 4, promotes=True)
async def _primary_killed(scene: Scene) -> None:
    primary = scene.manager.primary
    await asyncio.to_thread(primary.kill)
    await _return(scene, await _fail_over(scene, "killed"))


@_fault("PostgreSQL: primary frozen, then killed", 2, promotes=True)
async def _primary_frozen_and_killed(scene: Scene) -> None:
    await asyncio.to_thread(scene.manager.primary.freeze)
    former = await _fail_over(scene, "frozen")
    await asyncio.sleep(scene.rng.uniform(0, 1.5))
    await asyncio.to_thread(former.kill)
    await _return(scene, former)


@_fault("PostgreSQL: primary frozen, thaws as a second primary", 5, promotes=True)
async def _primary_frozen_and_thawed(scene: Scene) -> None:
    await asyncio.to_thread(scene.manager.primary.freeze)
    former = await _fail_over(scene, "frozen")
    await _until_noticed(scene)
    former.thaw()
    await _live_with(scene, former)
    await _return(scene, former)


@_fault("PostgreSQL: primary cut off, returns as a second primary", 4, promotes=True)
async def _primary_cut_off(scene: Scene) -> None:
    primary = scene.manager.primary
    links = [*server_links(primary), *replication_links(primary), *receiving_links(primary)]
    with scene.bed.nodes.cut_off(links, silent=scene.rng.random() < 0.6):
        former = await _fail_over(scene, "cut off")
        await _until_noticed(scene)
    await _live_with(scene, former)
    await _return(scene, former)


@_fault("PostgreSQL: primary stays frozen while a server is started", 1.5, promotes=True)
async def _server_started_beside_frozen_host(scene: Scene) -> None:
    """The frozen node is named first in the connection string of some rounds."""
    await asyncio.to_thread(scene.manager.primary.freeze)
    former = await _fail_over(scene, "frozen")
    supervisor = _server(scene)
    supervisor.signal(signal.SIGKILL)
    try:
        async with asyncio.timeout(START):
            await _until_up(supervisor)
    except TimeoutError:
        what = f"SLOW START: a server did not start within {START:g} s beside a silent host"
        scene.history.mark("wrong", what=what)
    await asyncio.to_thread(former.kill)
    await _until_up(supervisor)
    await _return(scene, former)


@_fault("PostgreSQL: primary killed while its standbys lag", 2, promotes=True)
async def _primary_killed_ahead(scene: Scene) -> None:
    """With asynchronous replication, acknowledged writes are lost."""
    primary = scene.manager.primary
    with scene.bed.nodes.cut_off(replication_links(primary), silent=True, drops=True):
        lag = LAG if scene.bed.mode == ASYNCHRONOUS else SHORT_LAG
        await asyncio.sleep(scene.rng.uniform(*lag))
        await asyncio.to_thread(primary.kill)
    await _return(scene, await _fail_over(scene, "killed"))


@_fault("PostgreSQL: waiting commits cancelled, then primary killed", 1.5, promotes=True)
async def _waiting_commits_cancelled(scene: Scene) -> None:
    """An administrator cancels commits that wait for a standby; a failover then loses them."""
    primary = scene.manager.primary
    scene.history.mark(CANCELLING)
    with scene.bed.nodes.cut_off(replication_links(primary), silent=True, drops=True):
        until = asyncio.get_running_loop().time() + scene.rng.uniform(0.4, 1.0)
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(*NO_ANSWER):
                await primary.row(_CANCEL)
            await asyncio.sleep(0.05)
        await asyncio.to_thread(primary.kill)
    former = await _fail_over(scene, "killed")
    scene.history.mark(CANCELLED)
    await _return(scene, former)


@_fault("PostgreSQL: switchover", 3, promotes=True)
async def _switchover(scene: Scene) -> None:
    primary = scene.manager.primary
    scene.history.mark("primary lost", node=primary.name, how="switchover")
    await asyncio.to_thread(primary.demote)
    # A standby that was frozen or cut off meanwhile may lack the end of the log.
    await scene.manager.attach(await scene.manager.promote(), "rewind")


# ---------------------------------------------------------------------- the primary stays


@_fault("PostgreSQL: primary frozen and thawed")
async def _primary_freezes(scene: Scene) -> None:
    primary = scene.manager.primary
    await asyncio.to_thread(primary.freeze)
    await asyncio.sleep(scene.rng.uniform(0.2, 1.5))
    primary.thaw()


@_fault("PostgreSQL: primary cut off from its standbys")
async def _primary_without_standbys(scene: Scene) -> None:
    links = replication_links(scene.manager.primary)
    with scene.bed.nodes.cut_off(links, silent=scene.rng.random() < 0.5):
        await asyncio.sleep(scene.rng.uniform(0.3, 1.5))


@_fault("PostgreSQL: primary cut off from a server")
async def _primary_without_a_server(scene: Scene) -> None:
    link = scene.rng.choice(server_links(scene.manager.primary))
    with scene.bed.nodes.cut_off([link], silent=scene.rng.random() < 0.5):
        await asyncio.sleep(scene.rng.uniform(0.3, 1.5))


# ---------------------------------------------------------------------- standbys


def _standby(scene: Scene) -> Node | None:
    standbys = scene.manager.standbys
    return scene.rng.choice(standbys) if standbys else None


@contextlib.contextmanager
def _disturbed(scene: Scene, node: Node):  # type: ignore[no-untyped-def]
    scene.history.mark("standby disturbed", node=node.name)
    try:
        yield
    finally:
        scene.history.mark("standby undisturbed", node=node.name)


@_fault("PostgreSQL: standby frozen", 1.5, brief=True)
async def _standby_frozen(scene: Scene) -> None:
    if (standby := _standby(scene)) is None:
        return
    with _disturbed(scene, standby):
        await asyncio.to_thread(standby.freeze)
        await asyncio.sleep(scene.rng.uniform(0.2, 1.5))
        standby.thaw()


@_fault("PostgreSQL: standby killed")
async def _standby_killed(scene: Scene) -> None:
    if (standby := _standby(scene)) is None:
        return
    with _disturbed(scene, standby):
        await asyncio.to_thread(standby.kill)
        await asyncio.sleep(scene.rng.uniform(0, 0.8))
        await asyncio.to_thread(standby.start)


@_fault("PostgreSQL: WAL receiver paused", 1.5, brief=True)
async def _receiver_paused(scene: Scene) -> None:
    if (standby := _standby(scene)) is None:
        return
    for pid in await _receivers(standby):
        with _disturbed(scene, standby):
            send(pid, signal.SIGSTOP)
            await asyncio.sleep(scene.rng.uniform(0.2, 1.5))
            send(pid, signal.SIGCONT)


@_fault("PostgreSQL: replay paused", 1.5, brief=True)
async def _replay_paused(scene: Scene) -> None:
    if (standby := _standby(scene)) is None:
        return
    with contextlib.suppress(*NO_ANSWER):
        await standby.run("SELECT pg_wal_replay_pause() WHERE pg_is_in_recovery()")
        await asyncio.sleep(scene.rng.uniform(0.2, 1.5))
        await standby.run("SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery()")


@_fault("PostgreSQL: standby cut off", brief=True)
async def _standby_cut_off(scene: Scene) -> None:
    if (standby := _standby(scene)) is None:
        return
    links = [*receiving_links(standby), *server_links(standby)]
    with (
        _disturbed(scene, standby),
        scene.bed.nodes.cut_off(links, silent=scene.rng.random() < 0.5),
    ):
        await asyncio.sleep(scene.rng.uniform(0.3, 1.5))


# ---------------------------------------------------------------------- the servers


def _server(scene: Scene) -> Supervisor:
    return scene.rng.choice(scene.fleet.supervisors)


@_fault("server killed", brief=True)
async def _server_killed(scene: Scene) -> None:
    supervisor = _server(scene)
    supervisor.signal(signal.SIGKILL)
    await asyncio.sleep(0)
    await _until_up(supervisor)


@_fault("server frozen", brief=True)
async def _server_frozen(scene: Scene) -> None:
    supervisor = _server(scene)
    supervisor.signal(signal.SIGSTOP)
    await asyncio.sleep(scene.rng.uniform(0.2, 1.2))
    supervisor.signal(signal.SIGCONT)


@_fault("rolling restart of the servers", 0.5)
async def _rolling_restart(scene: Scene) -> None:
    for supervisor in scene.fleet.supervisors:
        await _until_up(supervisor)
        supervisor.signal(signal.SIGTERM)
        await _until_up(supervisor)


async def _until_up(supervisor: Supervisor) -> None:
    """Wait until a server that was asked to end has been started again."""
    async with asyncio.timeout(120):
        while supervisor.stopping:  # noqa: ASYNC110 - the supervisor has no event for it
            await asyncio.sleep(0.02)
        await supervisor.up.wait()
