"""Experiments with three servers on a PostgreSQL cluster: one failure each, and what callers see.

    python -m tools.chaos.experiments NAME [NAME…]      all: every experiment

Each starts three PostgreSQL nodes and three servers, puts them under load, causes one failure, and
prints one line. The results are in docs/explanation/replication.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sagastore import AsyncClient, Message, RetryPolicy, SagaStoreError
from tools.chaos.history import History, Outcome
from tools.chaos.replication.fleet import ASYNCHRONOUS, QUORUM, ClusterBed, Fleet, cluster_bed
from tools.chaos.replication.nodes import NO_ANSWER, replication_links, server_links
from tools.chaos.replication.position_client import PositionClient, Requirement
from tools.chaos.values import moment

WARM_UP = 1.0
"""Seconds under load before the failure."""
AFTERWARDS = 3.0
"""Seconds under load after it."""
WRITERS = 12
WAIT = 30.0
"""Seconds in which a standby shows a commit, on a busy machine."""
READS = 1200
"""Reads right after a save, as many as in the first measurement."""

_MOMENT = 1_900_000_000_000_000

_CANCEL = """
SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
"""


class Load:
    """Clients that save new messages, and the answers they got."""

    def __init__(self, addresses: list[str], *, timeout: float, retry: RetryPolicy | None) -> None:
        """Write to the servers; ``retry`` is a policy, None the default one."""
        self._client = AsyncClient(addresses, timeout=timeout, retry=retry)
        self._numbers = itertools.count(1)
        self.acknowledged: dict[str, int] = {}
        """Revisions by id."""
        self.ends: list[float] = []
        """Times of the acknowledgements."""
        self.failed: Counter[str] = Counter()
        """Failed calls by code and reason."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write for the duration of the context."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write(stop))
            try:
                await asyncio.sleep(WARM_UP)
                yield
                await asyncio.sleep(AFTERWARDS)
            finally:
                stop.set()

    async def _write(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            id = f"load-{next(self._numbers)}"
            try:
                saved = await self._client.save(Message("openai", "user", id, id=id))
            except SagaStoreError as exc:
                self.failed[f"{exc.code} {exc.reason}".strip()] += 1
                await asyncio.sleep(0.02)
            else:
                self.acknowledged[id] = saved.revision
                self.ends.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def lost(self) -> int:
        """Return the number of acknowledged messages that are not stored any more."""
        ids, found = list(self.acknowledged), 0
        for begin in range(0, len(ids), 500):
            result = await self._client.batch_get(ids[begin : begin + 500])
            found += len(result.messages)
        return len(ids) - found

    @property
    def repeated_revisions(self) -> int:
        """Number of revisions that two messages were given."""
        return len(self.acknowledged) - len(set(self.acknowledged.values()))

    @property
    def gap(self) -> float:
        """Longest time without an acknowledged write, in seconds."""
        ends = sorted(self.ends)
        return max((b - a for a, b in itertools.pairwise(ends)), default=0.0)

    @property
    def failures(self) -> str:
        calls = len(self.acknowledged) + self.failed.total()
        kinds = ", ".join(f"{count} {name}" for name, count in self.failed.most_common())
        return f"{self.failed.total()} failed of {calls:,} calls" + (f" ({kinds})" if kinds else "")

    async def close(self) -> None:
        await self._client.close()


class Place:
    """Running nodes and servers."""

    def __init__(self, bed: ClusterBed, fleet: Fleet) -> None:
        self.bed = bed
        self.fleet = fleet
        self.manager = bed.manager

    @contextlib.asynccontextmanager
    async def load(
        self, *, limit: float = 10.0, retry: RetryPolicy | None = None
    ) -> AsyncIterator[Load]:
        """Provide a load that does not run yet; ``limit`` is the timeout of a call in seconds."""
        load = Load(self.fleet.addresses, timeout=limit, retry=retry)
        try:
            yield load
        finally:
            await load.close()

    @property
    def promoted_at(self) -> float:
        """When the latest promotion had ended, on the clock of `time.monotonic`."""
        marks = self.bed.history.marks
        return max(mark.at for mark in marks if mark.kind == "promoted") / 1e9


Experiment = Callable[[Place], Awaitable[str]]
EXPERIMENTS: dict[str, tuple[str, Experiment]] = {}
"""By name: mode of replication, and what is done."""


def _experiment(name: str, mode: str = QUORUM) -> Callable[[Experiment], Experiment]:
    def register(run: Experiment) -> Experiment:
        EXPERIMENTS[name] = mode, run
        return run

    return register


_ONCE = RetryPolicy(max_attempts=1)


@_experiment("primary-killed")
async def _primary_killed(place: Place) -> str:
    """Kill the primary, and promote a standby 2 s later."""
    async with place.load(limit=1.0, retry=_ONCE) as load:
        async with load.running():
            await asyncio.to_thread(place.manager.primary.kill)
            await asyncio.sleep(2.0)
            await place.manager.promote()
        acknowledged, lost = len(load.acknowledged), await load.lost()
        return f"{acknowledged:,} acknowledged, {lost} lost; gap {load.gap:.1f} s"


@_experiment("outage-of-4-s")
async def _outage(place: Place) -> str:
    """The same after 4 s, with the default retry policy."""
    async with place.load() as load:
        async with load.running():
            await asyncio.to_thread(place.manager.primary.kill)
            await asyncio.sleep(4.0)
            await place.manager.promote()
        return f"{load.failures}; gap {load.gap:.1f} s"


@_experiment("asynchronous-standby-lags", ASYNCHRONOUS)
async def _asynchronous(place: Place) -> str:
    """Kill the primary while its asynchronous standbys receive nothing."""
    async with place.load() as load:
        async with load.running():
            primary = place.manager.primary
            with place.bed.nodes.cut_off(replication_links(primary), silent=True, drops=True):
                await asyncio.sleep(2.0)
                await asyncio.to_thread(primary.kill)
            await place.manager.promote()
        return (
            f"{await load.lost()} of {len(load.acknowledged):,} acknowledged writes lost; "
            f"{load.repeated_revisions} revisions given out twice"
        )


@_experiment("primary-silent")
async def _primary_silent(place: Place) -> str:
    """Suspend the primary, which is the first host; promote; start a server meanwhile."""
    async with place.load() as load:
        async with load.running():
            await asyncio.to_thread(place.manager.primary.freeze)
            await asyncio.sleep(1.0)
            former = await place.manager.promote()
            promoted = place.promoted_at
            while not load.ends or load.ends[-1] < promoted:  # noqa: ASYNC110 - counted by the load
                await asyncio.sleep(0.005)
            recovered = min(end for end in load.ends if end > promoted) - promoted
            supervisor = place.fleet.supervisors[0]
            supervisor.signal(signal.SIGKILL)
            killed = time.monotonic()
            while supervisor.stopping:  # noqa: ASYNC110 - the supervisor has no event for it
                await asyncio.sleep(0.01)
            await supervisor.up.wait()
            started = time.monotonic() - killed
            await asyncio.to_thread(former.kill)
        return (
            f"writes {recovered:.2f} s after the promotion, {load.failures}; "
            f"a server starts in {started:.1f} s"
        )


@_experiment("commit-cancelled")
async def _commit_cancelled(place: Place) -> str:
    """Cancel commits that wait for their standbys, then kill the primary and promote."""
    async with place.load(limit=5.0, retry=_ONCE) as load:
        primary = place.manager.primary
        cancelled = 0
        async with load.running():
            with place.bed.nodes.cut_off(replication_links(primary), silent=True, drops=True):
                for _ in range(20):
                    with contextlib.suppress(*NO_ANSWER):
                        cancelled += (await primary.row(_CANCEL))[0]
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(primary.kill)
            await place.manager.promote()
        return (
            f"{cancelled} waits cancelled; {len(load.acknowledged):,} acknowledged, "
            f"{await load.lost()} lost; {load.failures}"
        )


@_experiment("switchover")
async def _switchover(place: Place) -> str:
    """Stop the primary cleanly, promote, and let the former primary follow at the same address."""
    async with place.load() as load:
        async with load.running():
            former = place.manager.primary
            await asyncio.to_thread(former.demote)
            await place.manager.promote()
            await place.manager.attach(former, "rewind")
        return f"{load.failures}; {await load.lost()} lost; gap {load.gap:.1f} s"


@_experiment("standby-frozen")
async def _standby_frozen(place: Place) -> str:
    """Suspend one of two standbys for 5 s, with quorum commit and with a named standby."""
    quorum = await _gap_with_frozen_standby(place)
    for node in place.bed.nodes.all:
        await node.run(
            "ALTER SYSTEM SET synchronous_standby_names = 'n2'", "SELECT pg_reload_conf()"
        )
    alone = await _gap_with_frozen_standby(place)
    return f"longest gap: quorum commit {quorum:.2f} s, a single synchronous standby {alone:.1f} s"


async def _gap_with_frozen_standby(place: Place) -> float:
    async with place.load() as load:
        async with load.running():
            standby = place.bed.nodes.all[1]
            await asyncio.to_thread(standby.freeze)
            await asyncio.sleep(5.0)
            standby.thaw()
        return load.gap


@_experiment("reads-after-writes")
async def _reads_after_writes(place: Place) -> str:
    """Read right after a save, on any server: any replica, and with the position of the save."""
    history = History()
    draw = random.Random("reads")
    clients = [
        PositionClient(place.fleet.addresses, history, number, timeout=10.0) for number in range(4)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                group.create_task(_save_and_read(client, number, draw))
    finally:
        for client in clients:
            await client.close()
    missed: Counter[str] = Counter()
    took: list[float] = []
    for operation in history:
        if operation.kind == "Get":
            name = operation.args["requirement"]
            missed[f"{name} reads"] += 1
            missed[name] += operation.outcome is not Outcome.OK
            if name == "at_least":
                took.append(((operation.end or 0) - operation.start) / 1e6)
    replica = f"{missed['any_replica']} of {missed['any_replica reads']:,}"
    position = f"{missed['at_least']} of {missed['at_least reads']:,}"
    return (
        f"any_replica misses {replica}; at_least misses {position}, "
        f"in {statistics.median(took):.1f} ms (median)"
    )


def _message(id: str) -> Message:
    return Message("openai", "user", id, id=id, timestamp=moment(_MOMENT), metadata={})


async def _save_and_read(client: PositionClient, number: int, draw: random.Random) -> None:
    for count in range(READS // 4):
        id = f"read-{number}-{count}"
        await client.save(draw.randint(1, 3), _message(id))
        wanted = Requirement("at_least", client.position)
        await client.get(draw.randint(1, 3), id, wanted)
        id = f"{id}-any"
        await client.save(draw.randint(1, 3), _message(id))
        await client.get(draw.randint(1, 3), id, Requirement("any_replica"))


@_experiment("commit-not-confirmed")
async def _commit_not_confirmed(place: Place) -> str:
    """Read a commit on a replica before the primary shows it, then require its position there."""
    history = History()
    client = PositionClient(place.fleet.addresses, history, 1, timeout=10.0)
    bed, primary = place.bed, place.manager.primary
    message = _message("unconfirmed")
    any_replica = Requirement("any_replica")
    try:
        # Standbys receive everything, and the primary does not hear of it.
        for link in replication_links(primary):
            bed.proxy.set(link, hold=("up",))
        saving = asyncio.create_task(client.save(1, message))
        async with asyncio.timeout(WAIT):
            while not await client.get(2, message.id, any_replica):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        standbys = [link for node in place.manager.standbys for link in server_links(node)]
        with bed.nodes.cut_off(standbys, silent=False):
            position = Requirement("at_least", client.position)
            found = await client.get(2, message.id, position)
        answered = history.operations[-1]
        for link in replication_links(primary):
            bed.proxy.set(link)
        await saving
    finally:
        await client.close()
    answer = "shows it" if found else f"answers {answered.code}"
    return f"a replica shows the commit; then the primary, with its position, {answer}"


@_experiment("rolling-restart")
async def _rolling_restart(place: Place) -> str:
    """Restart the servers one after the other under load."""
    async with place.load() as load:
        async with load.running():
            for supervisor in place.fleet.supervisors:
                supervisor.signal(signal.SIGTERM)
                while supervisor.stopping:  # noqa: ASYNC110 - the supervisor has no event for it
                    await asyncio.sleep(0.01)
                await supervisor.up.wait()
        return f"{load.failures}; gap {load.gap:.2f} s"


async def _run(name: str) -> str:
    mode, experiment = EXPERIMENTS[name]
    with cluster_bed() as bed:
        bed.mode = mode
        await bed.open()
        history = History()
        await bed.begin(mode, history)
        fleet = Fleet(bed, "experiment", "", history)
        try:
            await fleet.open()
            return await experiment(Place(bed, fleet))
        finally:
            for supervisor in fleet.supervisors:
                await supervisor.abandon()


def main(arguments: list[str] | None = None) -> int:
    """Run the experiments that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=["all", *EXPERIMENTS], metavar="NAME",
                        help=f"all, {', '.join(EXPERIMENTS)}")  # fmt: skip
    names: Any = parser.parse_args(arguments).names
    for name in EXPERIMENTS if names == ["all"] else names:
        sys.stdout.write(f"{name}: {asyncio.run(_run(name))}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
