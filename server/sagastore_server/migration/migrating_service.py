"""A service that has both stores: puts the parts together, opens and closes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import NamedTuple, NoReturn

from sagastore_server.migration.attachment import check, forget_restoration
from sagastore_server.migration.backfill import Backfill
from sagastore_server.migration.controller import Controller, Parts
from sagastore_server.migration.current_state import CurrentState, MigrationContext
from sagastore_server.migration.cutover import Cutover
from sagastore_server.migration.health_cache import HealthCache
from sagastore_server.migration.lease import LEASE_WITHIN
from sagastore_server.migration.preconditions import Preconditions
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.router import Router
from sagastore_server.migration.shadow import ShadowReader
from sagastore_server.migration.throttle import Throttle
from sagastore_server.migration.timeouts import bounded
from sagastore_server.migration.transitions import Transitions
from sagastore_server.migration.tuning import DEFAULT_TUNING, Tuning
from sagastore_server.migration.verifications import Verifications
from sagastore_server.migration.write_fence import WriteFence
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Environment
from sagastore_server.storage.errors import (
    CannotOpenError,
    MovedError,
    PreconditionError,
    StorageError,
)
from sagastore_server.storage.migration import BackfillState, MigrationControl
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    MigrationSource,
    MigrationTarget,
    TargetRecord,
    TargetState,
)

LOOK_WITHIN = 5.0
"""Seconds that a start waits for PostgreSQL where it can do without."""

READY_WITHIN = 2.0
"""Seconds that a start in the middle of a migration waits for PostgreSQL to be followed, or to
answer reads, before it serves without."""

_log = logging.getLogger(__name__)


class Options(NamedTuple):
    """What an operator can set."""

    shadow_share: float = 0.05
    """Share of the reads that are compared in BACKFILL, 0 to 1."""
    patience: float = 1.5
    """Seconds that PostgreSQL may be silent before SQLite answers in its place."""


class MigratingService:
    """Both stores behind one backend, and what steers them. Needs a running event loop."""

    def __init__(  # noqa: PLR0917 - callers name the last ones
        self,
        source: MigrationSource,
        target: MigrationTarget,
        options: Options = Options(),  # noqa: B008 - a named tuple never changes
        environment: Environment = SYSTEM_ENVIRONMENT,
        tuning: Tuning = DEFAULT_TUNING,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Prepare to migrate from ``source`` to ``target``."""
        self._source = source
        self._target = target
        self._current_state = CurrentState()
        self._clock, self._tuning = environment.clock, tuning
        supervisor = supervisor or Supervisor(clock=environment.clock)
        self._supervisor = supervisor
        context = MigrationContext(
            source, target, self._current_state, WriteFence(), supervisor, environment, tuning
        )
        throttle = Throttle(clock=self._clock.monotonic)
        self._replicator = replicator = Replicator(context, options.patience)
        self._session, self._fallback = replicator.session, replicator.fallback
        self._shadow = shadow = ShadowReader(
            source,
            target,
            replicator.fallback.reach,
            share=options.shadow_share,
            environment=environment,
            supervisor=supervisor,
        )
        self._verifications = verifications = Verifications(context, replicator, shadow)
        self._backfill = Backfill(context, replicator, throttle, self._backfill_done)
        self._cutover = Cutover(context, replicator, verifications)
        parts = Parts(
            replicator,
            self._backfill,
            Preconditions(context, replicator),
            Transitions(context, replicator),
            self._cutover,
            verifications,
            shadow,
            HealthCache(source, target, self._current_state, self._clock),
        )
        self._controller = Controller(context, parts)
        self._router = Router(context, replicator, shadow, throttle, self)
        self._caretaker: SupervisedTask | None = None

    @property
    def backend(self) -> StorageBackend:
        """Where messages are stored and found."""
        return self._router

    @property
    def control(self) -> MigrationControl:
        """What operators ask."""
        return self._controller

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self._current_state.phase

    @property
    def can_go_away(self) -> bool:
        """Whether the service may be unable to serve for a while, as a file never is."""
        return self._session.fenced or not self.phase.writes_sqlite

    @property
    def place(self) -> str:
        """Where the messages are, for people."""
        if not self.phase.writes_sqlite:
            return self._target.place
        return f"{self._source.place} ({self.phase.slug}, {self._target.place})"

    async def open(self) -> None:
        """Open the stores of the phase, and bring them together after a crash.

        Raises:
            CannotOpenError: Going on would risk a message; the line says what to do.

        """
        try:
            await self._open()
        except CannotOpenError:
            await self.close()
            raise
        except StorageError as exc:
            # Whatever a store says, a person who starts a server gets one line.
            await self.close()
            raise CannotOpenError(str(exc)) from exc
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop all background tasks, then close both stores.

        Every step runs, even if an earlier one fails. The first error is raised at the end.
        """
        if self._caretaker is not None:
            self._caretaker.cancel()
        steps = (
            self._controller.close,
            self._verifications.close,
            self._shadow.close,
            self._backfill.stop,
            self._replicator.stop,
            self._source.close,
            self._target.close,
        )
        errors: list[BaseException] = []
        for step in steps:
            try:
                await step()
            except BaseException as exc:  # noqa: BLE001 - the stores must be closed
                errors.append(exc)
        for error in errors[1:]:
            _log.error("closing the migration failed again: %s", error, exc_info=error)
        if errors:
            raise errors[0]

    # ------------------------------------------------------------------ opening

    async def _open(self) -> None:
        if self._source.is_new:
            await self._refuse_a_new_file_beside_messages()
        try:
            await self._source.open()
        except MovedError as exc:
            await self._open_after_the_end(exc)
            return
        state = await self._source.state()
        self._current_state.enter(state)
        if state.completing or state.phase is Phase.POSTGRES_ONLY:
            await self._resume_the_last_step()
        if self.phase.writes_sqlite:
            await self._meet_the_target()
            self._start()
            await self._come_back()

    async def _come_back(self) -> None:
        """Begin where the service was before, if PostgreSQL is soon to be had."""
        until = self._clock.monotonic() + READY_WITHIN
        while self._is_coming_back() and self._clock.monotonic() < until:
            await self._current_state.changed(0.1)

    def _is_coming_back(self) -> bool:
        if not self.phase.journals or self._session.trouble is not None:
            return False
        return not (
            self._fallback.current if self.phase.reads_postgres else self._fallback.attached
        )

    def _start(self) -> None:
        self._shadow.start()
        self._backfill.start()
        if self.phase.journals:
            self._replicator.start()
        self._caretaker = self._supervisor.start(
            "migration-caretaker", self._verify_complete_copies
        )

    async def _refuse_a_new_file_beside_messages(self) -> None:
        """A mistyped path must not look like an empty service."""
        found = await self._look()
        if found is None:
            return
        if found.record is None and found.empty:
            return
        if found.record is None or found.record.phase is Phase.POSTGRES_ONLY:
            raise CannotOpenError(
                f"{self._source.place} does not exist, and {self._target.place} holds messages of "
                "its own; to serve those, leave out --sqlite; to move a SQLite file there, give "
                "the file that exists, and an empty database"
            )
        raise CannotOpenError(
            f"{self._source.place} does not exist, and {self._target.place} belongs to the "
            "migration of another SQLite file; give the path of that file, or an empty database"
        )

    async def _open_after_the_end(self, moved: MovedError) -> None:
        """The file was archived; PostgreSQL is the only store."""
        await self._target.open()
        record = (await self._target.inspect()).record
        finished = record is not None and record.phase is Phase.POSTGRES_ONLY
        if record is None or not finished or moved.store_id not in {"", record.source}:
            raise CannotOpenError(f"{moved}; {self._target.place} is not where they went")
        self._end(record)
        _log.warning("%s; --sqlite is of no use any more, leave it out", moved)

    async def _resume_the_last_step(self) -> None:
        """A crash came into the last step: PostgreSQL knows whether it took over."""
        try:
            await self._target.open()
            found = await self._inspect_settled()
        except StorageError as exc:
            raise CannotOpenError(
                "the last step of the migration was interrupted, and PostgreSQL alone knows "
                f"whether it was done: {exc}"
            ) from exc
        record, state = found.record, self._current_state.state
        if record is None or record.source != self._source.store_id:
            raise CannotOpenError(
                "the last step of the migration was interrupted, and this PostgreSQL knows "
                "nothing of it; give the right --postgres"
            )
        if state.restored >= 0:
            check(record, self._source, self._current_state)
        if record.phase is Phase.POSTGRES_ONLY:
            _log.warning("the last step was interrupted; archiving the file now")
            self._end(record)
            await self._cutover.archive({"resumed_after_a_crash": True})
        elif state.phase is Phase.POSTGRES_ONLY:
            raise CannotOpenError(
                f"{self._source.place} is an archive, and {self._target.place} is in phase "
                f"{record.phase.slug}: they do not belong together; give the right --postgres"
            )
        else:
            await self._current_state.commit(self._source, state._replace(completing=False))

    async def _inspect_settled(self) -> TargetState:
        """Look once no commit of the server that died can be under way any more.

        A commit may take long, and "not yet" is not "never". Claiming waits for it,
        because it has locked the record.
        """
        found = await self._target.inspect()
        record, state = found.record, self._current_state.state
        if record is None or record.source != self._source.store_id:
            return found
        if Phase.POSTGRES_ONLY in {record.phase, state.phase}:
            return found
        with contextlib.suppress(PreconditionError):  # It has been finished, for one.
            await self._target.claim(
                self._session.lease, record.source, state.phase, state.epoch, steal=True
            )
        return await self._target.inspect()

    async def _meet_the_target(self) -> None:
        """Refuse to start where PostgreSQL has seen more than the file, or serves another."""
        found = await self._look()
        if found is None and self._current_state.state.restored >= 0:
            self._refuse_unasked()
        if found is None or found.record is None:
            return
        record = found.record
        if record.source != self._source.store_id:
            if record.phase is Phase.POSTGRES_ONLY or not self.phase.journals:
                return  # A blocker, not a danger: nothing is written there.
            _log.error("PostgreSQL belongs to another migration; it is left alone")
            return
        check(record, self._source, self._current_state)
        await forget_restoration(self._source, self._current_state)
        await self._wait_for_the_lease(record)

    def _refuse_unasked(self) -> NoReturn:
        """Without PostgreSQL nobody knows whether a restored file lacks later changes."""
        alone = "" if self.phase.journals else ", or leave out --postgres to serve the file alone"
        raise CannotOpenError(
            f"{self._source.place} was restored from a backup, and {self._target.place} must be "
            "asked once whether it has seen later changes, but cannot be used now; see that it "
            f"runs, and start again{alone}"
        )

    async def _wait_for_the_lease(self, record: TargetRecord) -> None:
        """Wait until a server that is gone does not hold PostgreSQL any more."""
        waited = 0.0
        while self._is_held_by_another(record):
            if waited > LEASE_WITHIN:
                _refuse_second(record)
            pause = min(max(record.lease_seconds, 0.2), 2.0)
            await asyncio.sleep(pause)
            waited += pause
            found = await self._look()
            if found is None or found.record is None:
                return
            record = found.record

    def _is_held_by_another(self, record: TargetRecord) -> bool:
        ours = record.holder in {"", self._source.holder}
        return self.phase.journals and not ours and record.lease_seconds > 0

    async def _look(self) -> TargetState | None:
        """Return what is in PostgreSQL; None where it does not answer, or cannot be used."""

        async def look() -> TargetState:
            await self._target.open()
            return await self._target.inspect()

        try:
            return await bounded(look(), LOOK_WITHIN, self._target.place)
        except StorageError as exc:
            _log.warning("PostgreSQL is not to be had: %s", exc)
            return None

    def _end(self, record: TargetRecord) -> None:
        self._session.mark = record.backfill
        self._current_state.enter(
            self._current_state.state._replace(phase=Phase.POSTGRES_ONLY, epoch=record.epoch)
        )

    # ------------------------------------------------------------------ while it runs

    async def _backfill_done(self) -> None:
        """A copy is complete: what was compared before proves nothing of it."""
        self._shadow.reset()
        async with self._current_state.changing:
            state = self._current_state.state._replace(last_verification=None)
            await self._current_state.commit(self._source, state)

    async def _verify_complete_copies(self) -> None:
        """See to it that a copy which is complete is verified, also after a restart."""
        while True:
            await self._current_state.changed(self._tuning.caretaker_seconds)
            if (
                self.phase.completes_copy
                and self._fallback.attached
                and self._session.mark.state is BackfillState.DONE
                and self._current_state.state.last_verification is None
                and self._verifications.progress is None
            ):
                self._verifications.start_automatic()


def _refuse_second(record: TargetRecord) -> NoReturn:
    host = record.holder.partition(":")[0]
    raise CannotOpenError(
        f"another server, on {host}, holds this migration in PostgreSQL; a migration has one "
        "server: stop that one first"
    )
