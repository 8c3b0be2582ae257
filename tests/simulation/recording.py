"""Recorder: writes a round of the simulation as a trace that `tools.spec.trace` can check.

Durable steps of both stores, the knowledge of the server, and answers to clients become events, in
their order. The objects of the round are hooked while it runs; the product contains no hook code.
Changes of sessions and of files are left out, see `messages_only`.
Not recorded: the profiles "rival" and "mistakes" (a second server, file or PostgreSQL is not part
of a trace), and reads other than Get and BatchGet.
"""

from __future__ import annotations

from sagastore_server.migration.migrating_service import MigratingService
from tests.simulation import service as services
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.models.source_disk import SourceDisk
from tests.simulation.tracing.messages import messages_only
from tests.simulation.tracing.server import Watched
from tests.simulation.tracing.stores import hook_disk, hook_postgres
from tests.simulation.tracing.trace import Event, Trace, hook
from tests.simulation.world import World


def record(world: World) -> list[Event]:
    """Run a round and return its events; ``world.violations`` has its verdict."""
    trace = Trace(world)
    _hook_world(trace)
    hook_disk(trace, world.disk)
    hook_postgres(trace)
    make = services.make_live

    def make_watched(
        of: World, disk: SourceDisk, process: Process, postgres: PostgresServer
    ) -> MigratingService:
        live = make(of, disk, process, postgres)
        if disk is world.disk:
            Watched(trace, live, process)
        return live

    hook(services, make_live=make_watched)
    try:
        world.run()
    finally:
        hook(services, make_live=make)
    return messages_only(trace.finished())


def _hook_world(trace: Trace) -> None:
    """Record the start of the round and each kill of the server."""
    world = trace.world
    fill, kill = world._fill_file, world.service.kill

    def filled() -> None:
        fill()
        rows = {key: message.revision for key, message in world.disk.messages.items()}
        trace.begin(rows, world.disk.revision)

    def killed(after: float) -> None:
        if not world.service.process.dead:
            trace.note("crash")
        kill(after)

    hook(world, _fill_file=filled)
    hook(world.service, kill=killed)
