"""Hooks on one server: phase, write fence, replicator and lease."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.replication import BackfillMark, MigrationState
from tests.simulation.models.process import Process
from tests.simulation.tracing.calls import ClientCalls
from tests.simulation.tracing.server_stores import ServerStores
from tests.simulation.tracing.trace import ATTACHING, Trace, hook, mark_of, setting


class Watched:
    """Hooks the parts of one server."""

    def __init__(self, trace: Trace, live: MigratingService, process: Process) -> None:
        """Start recording this server."""
        self._trace = trace
        self._live = live
        self._process = process
        self._started = False
        self.session = int(process.name.partition("-")[2])
        trace.sessions[live._replicator.session.lease.session] = self.session
        if self.session > 1 and trace.events[-1]["event"] != "crash":
            trace.note("crash")
        trace.note("launch", session=self.session)
        self._hook_start()
        self._hook_fence()
        self._hook_replicator()
        self._hook_guard()
        ServerStores(self, trace, live)
        ClientCalls(trace, live, process)

    def note(self, kind: str, **fields: Any) -> None:
        """Add an event of this server, unless it is dead."""
        if not self._process.dead:
            self._trace.note(kind, **fields)

    # -------------------------------------------------------------- phase, fence, replicator

    def _hook_start(self) -> None:
        live, current_state = self._live, self._live._current_state
        meet, end, enter = live._check_target, live._end, current_state.enter

        async def met() -> None:
            self._start()
            await meet()

        def ended(record: Any) -> None:
            end(record)
            self._start()

        def entered(state: MigrationState) -> None:
            enter(state)
            if self._started:
                self.note("phase", phase=state.phase.value)

        hook(live, _check_target=met, _end=ended)
        hook(current_state, enter=entered)

    def _hook_fence(self) -> None:
        gate = self._live._router._fence
        closed = gate.closed

        @contextlib.asynccontextmanager
        async def held(within: float) -> AsyncIterator[None]:
            self.note("gate", open=False)
            try:
                async with closed(within):
                    yield
            finally:
                self.note("gate", open=True)

        hook(gate, closed=held)

    def _start(self) -> None:
        self._started = True
        self.note("start", phase=self._live.phase.value)

    def _hook_replicator(self) -> None:
        replicator = self._live._replicator
        fallback, session = replicator.fallback, replicator.session
        advance, set_status = replicator._advance, fallback.set_status
        attach, copy = replicator._attach, session.copy

        def advanced(applied: int, entries: Any) -> None:
            self.note("applied", applied=applied)
            advance(applied, entries)

        def stood(standing: Any) -> None:
            if standing is not fallback.status:
                self.note("standing", standing=standing.value)
            set_status(standing)

        async def attached() -> None:
            with setting(ATTACHING, True):
                await attach()

        async def copied(
            messages: Any, mark: BackfillMark, before: BackfillMark, least: int = 0
        ) -> None:
            if isinstance(messages, list):
                self.page([], before, mark)
            await copy(messages, mark, before, least)
            self.note("mark", before=mark_of(before), after=mark_of(mark))

        hook(replicator, _advance=advanced, _attach=attached)
        hook(fallback, set_status=stood)
        hook(session, copy=copied)

    def _hook_guard(self) -> None:
        session = self._live._replicator.session
        guard = session.guard
        fence, contest, prove = session.fence, guard.contest, guard.prove

        def fenced(error: Any) -> Any:
            if not self._live._current_state.state.completing:
                self.note("fenced")
            return fence(error)

        def contested(blocker: Any) -> None:
            self.note("contested")
            contest(blocker)

        def proved(asked_at: float) -> None:
            before = guard.contested
            prove(asked_at)
            if before is not None and guard.contested is None:
                self.note("proved")

        hook(session, fence=fenced)
        hook(guard, contest=contested, prove=proved)

    def page(self, ids: list[str], before: BackfillMark, after: BackfillMark) -> None:
        self.note("page", ids=ids, before=mark_of(before), after=mark_of(after))
