"""Operator mistakes: a server that is given the wrong PostgreSQL or the wrong file.

Each ends with a start on the right ones. Meanwhile the foreign data must be neither read nor
written, and no file may be served if PostgreSQL has seen later changes of it.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import BackfillMark, TargetRecord
from tests.simulation.clients import draft, new_value
from tests.simulation.environment import EPOCH
from tests.simulation.models.postgres import PostgresContents, PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.observed_stores import ObservedDisk

if TYPE_CHECKING:
    from tests.simulation.faults import Faults
    from tests.simulation.world import World

REFUSED_SECONDS = 12.0
"""Seconds until a start has been refused: PostgreSQL has 5 s to answer, and the server is restarted
every half second.
"""

UNKNOWN = 10_000
"""Serial number of the value of a foreign message."""


async def wrong_postgres(faults: Faults, seconds: float) -> None:
    """Give the server a foreign PostgreSQL for a while."""
    world, service = faults.world, faults.world.service
    decoy = _decoy(world, faults.draw)
    before = decoy.snapshot()
    await service.end()
    service.postgres = decoy
    service.start()
    until = world.loop.time() + 1.0 + 3.0 * seconds
    while not world.over and world.loop.time() < until:
        await asyncio.sleep(0.1)
    await service.end()
    if _belongings(decoy) != _belongings(before):
        world.violation("a foreign PostgreSQL was written to")
    service.postgres = world.postgres
    service.start()


def _decoy(world: World, draw: Random) -> PostgresServer:
    """Return a PostgreSQL with foreign messages, or with the migration of another file."""
    decoy = PostgresServer(Random(f"{world.seed}/decoy"), Process("wrong-postgres"))
    decoy.schema = world.postgres.schema or 1
    phase = draw.choice((None, Phase.DUAL_WRITE, Phase.READ_POSTGRES, Phase.POSTGRES_ONLY))
    if phase is not None:
        mark = BackfillMark(BackfillState.DONE, carried=True)
        decoy.record = TargetRecord("store-other", phase, 7, "other:1:1", "", 0.0, 3, mark)
    if phase is None or draw.random() < 0.5:
        other = draft("old-000", new_value(UNKNOWN, None))
        decoy.rows[other.id] = Message(*other[:8], EPOCH, 3, 3)  # type: ignore[arg-type]
    return decoy


def _belongings(contents: PostgresContents) -> tuple[object, ...]:
    rows = contents.rows, contents.tombs, contents.files, contents.file_tombs
    return *rows, contents.record, contents.quarantine


async def old_file(faults: Faults, _: float) -> None:
    """Replace the file by a copy, although PostgreSQL has seen later changes."""
    world = faults.world
    kept = copied(world.disk, Random(f"{world.seed}/copy"), world.disk.holder)
    await asyncio.sleep(faults.draw.random())
    await world.service.end()
    record, known = world.postgres.record, kept.state.epoch
    newer = record is not None and (record.applied > kept.revision or record.epoch > known)
    # A copy from the last step is complete, and is archived once PostgreSQL is the only store.
    if newer and not kept.state.completing:
        await _check_refused(world, kept, "a copy that is older than what PostgreSQL has seen")
    world.service.start()


async def new_file(faults: Faults, _: float) -> None:
    """Start with a path at which no file exists."""
    world = faults.world
    await world.service.end()
    if world.postgres.record is not None or world.postgres.has_content:
        fresh = ObservedDisk(Random(f"{world.seed}/fresh"), store_id="store-fresh")
        await _check_refused(world, fresh, "a new file, while PostgreSQL has messages")
    world.service.start()


async def _check_refused(world: World, disk: ObservedDisk, what: str) -> None:
    """Start on a wrong file and check that it is not served."""
    service = world.service
    service.disk, service.refused = disk, ""
    # If PostgreSQL does not answer, the server cannot detect the mistake; it serves and reports
    # that.
    world.loop.cancel_trips()
    world.postgres.slow = 1.0
    service.start()
    until = world.loop.time() + REFUSED_SECONDS
    while not (service.serving or service.refused) and world.loop.time() < until:
        await asyncio.sleep(0.05)
    if service.serving:
        world.violation(f"{what} is served")
    elif not service.refused:
        world.violation(f"{what} is neither refused nor served")
    service.abandon()
    service.disk = world.disk


async def moved_by_backup(faults: Faults, seconds: float) -> None:
    """Back up the stopped server's file, restore the backup, and start on it."""
    world = faults.world
    await world.service.end()
    disk = world.disk
    # A restored file from the last step is refused by design once PostgreSQL is the only store; the
    # error says to start with --postgres alone, which no start in a round does.
    if not disk.state.completing and disk.state.phase is not Phase.POSTGRES_ONLY:
        disk.state = disk.state._replace(restored=disk.revision)
    if faults.draw.random() < 0.5:
        world.postgres.crash()
        world.service.start()
        await asyncio.sleep(seconds)
        world.postgres.start()
        return
    world.service.start()


async def carried_lost(faults: Faults, _: float) -> None:
    """Remove a row of PostgreSQL that no client checks: a quarantined row or an extra value."""
    world, postgres = faults.world, faults.world.postgres
    live = world.service.live
    record = postgres.record
    if live is None or not live.phase.journals or record is None:
        return
    if record.phase is Phase.POSTGRES_ONLY:
        return
    rows: dict[Any, Any] = faults.draw.choice((postgres.quarantine, postgres.extras))
    if not rows:
        return
    world.was_altered = True
    removed = next(iter(rows))
    del rows[removed]
    if rows is postgres.quarantine and world.cutover_begun:
        world.removed_at_cutover.add(removed)


def copied(mine: ObservedDisk, draw: Random, holder: str) -> ObservedDisk:
    """Return a copy of a file on the machine that ``holder`` names."""
    disk = ObservedDisk(draw, holder=holder, store_id=mine.store_id)
    rows = ("messages", "sessions", "buried", "files", "buried_files")
    for name in (*rows, "journal", "quarantine", "extras"):
        setattr(disk, name, copy.copy(getattr(mine, name)))
    disk.revision, disk.pruned, disk.state = mine.revision, mine.pruned, mine.state
    disk.archive, disk.is_new = mine.archive, False
    return disk


MISCONFIGURATIONS: dict[str, Callable[[Faults, float], Awaitable[None]]] = {
    "wrong PostgreSQL": wrong_postgres,
    "old file": old_file,
    "new file": new_file,
    "moved by backup": moved_by_backup,
    "carried row lost": carried_lost,
}
