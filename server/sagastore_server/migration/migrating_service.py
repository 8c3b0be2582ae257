"""MigratingService: the composition root of a migration, and its start.

`MigratingService` builds one object of every part and passes each what it needs:

- *Shared*: `MigrationContext` (both stores, `CurrentState`, the write fence, the supervisor).
- *Data*: `Router` is the backend that calls reach; `Replicator` applies the journal; `Backfill`
  copies older rows; `Verifications` and `ShadowReader` compare.
- *Control*: `Controller` changes the phase by way of `Preconditions`, `Transitions` and `Cutover`.

A start is in one of these situations, and `_open` handles them in this order:

1. The file does not exist: refused if PostgreSQL has messages, since the path may be mistyped.
2. The file is an archive: PostgreSQL is the only store.
3. The cutover was interrupted: PostgreSQL alone knows whether it took over.
4. Otherwise PostgreSQL is compared with the file. A start is refused if PostgreSQL has seen later
   changes than the file, or if another server holds the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import NamedTuple, NoReturn

from sagastore_server.migration.attachment import check, forget_restoration
from sagastore_server.migration.backfill import Backfill
from sagastore_server.migration.common_counts import CommonCounter
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
"""Seconds to wait for PostgreSQL at a start that does not need it."""

READY_WITHIN = 2.0
"""Seconds to wait at a start during a migration until replication runs, or in READ_POSTGRES until
PostgreSQL answers reads. After that the server serves from SQLite."""

_log = logging.getLogger(__name__)


class Options(NamedTuple):
    """Settings of a migration."""

    shadow_share: float = 0.05
    """Share of the reads that are compared in BACKFILL, 0 to 1."""
    patience: float = 1.5
    """Seconds for which PostgreSQL may be silent before SQLite answers in its place."""


class MigratingService:
    """Both stores behind one backend, and the migration's control. Needs a running event loop."""

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
        supervisor = supervisor or Supervisor()
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
            HealthCache(
                source,
                target,
                self._current_state,
                self._clock,
                CommonCounter(source, target, self._clock),
            ),
        )
        self._controller = Controller(context, parts)
        self._router = Router(context, replicator, shadow, throttle, self)
        self._caretaker: SupervisedTask | None = None

    @property
    def backend(self) -> StorageBackend:
        """The backend that serves calls."""
        return self._router

    @property
    def control(self) -> MigrationControl:
        """The operators' interface."""
        return self._controller

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self._current_state.phase

    @property
    def can_go_away(self) -> bool:
        """Whether the service may be temporarily unable to serve, unlike a file."""
        return self._session.fenced or not self.phase.writes_sqlite

    @property
    def place(self) -> str:
        """The location of the messages, for logs and errors."""
        if not self.phase.writes_sqlite:
            return self._target.place
        return f"{self._source.place} ({self.phase.slug}, {self._target.place})"

    async def open(self) -> None:
        """Open the stores of the phase, and reconcile them after a crash.

        Raises:
            CannotOpenError: Serving could lose messages; the text says what to do.

        """
        try:
            await self._open()
        except CannotOpenError:
            await self.close()
            raise
        except StorageError as exc:
            # Every failure of a start is reported as one line.
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
            await self._refuse_new_file_beside_messages()
        try:
            await self._source.open()
        except MovedError as exc:
            await self._open_archived(exc)
            return
        state = await self._source.state()
        self._current_state.enter(state)
        if state.completing or state.phase is Phase.POSTGRES_ONLY:
            await self._resume_cutover()
        if self.phase.writes_sqlite:
            await self._check_target()
            self._start()
            await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        """Wait for replication to run as before the restart, if PostgreSQL is available soon."""
        until = self._clock.monotonic() + READY_WITHIN
        while self._is_becoming_ready() and self._clock.monotonic() < until:
            await self._current_state.changed(0.1)

    def _is_becoming_ready(self) -> bool:
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

    async def _refuse_new_file_beside_messages(self) -> None:
        """Refuse to start on a mistyped path, which would look like an empty service."""
        found = await self._inspect()
        if found is None:
            return
        if found.record is None and found.empty:
            return
        if found.record is None or found.record.phase is Phase.POSTGRES_ONLY:
            raise CannotOpenError(
                f"{self._source.place} does not exist, and {self._target.place} holds messages; to "
                "serve those, omit --sqlite; to migrate a SQLite file, give the path of an "
                "existing file, and an empty database"
            )
        raise CannotOpenError(
            f"{self._source.place} does not exist, and {self._target.place} belongs to the "
            "migration of another SQLite file; give the path of that file, or an empty database"
        )

    async def _open_archived(self, moved: MovedError) -> None:
        """Serve from PostgreSQL alone: the file was archived."""
        await self._target.open()
        record = (await self._target.inspect()).record
        finished = record is not None and record.phase is Phase.POSTGRES_ONLY
        if record is None or not finished or moved.store_id not in {"", record.source}:
            raise CannotOpenError(f"{moved}; {self._target.place} is not that database")
        self._end(record)
        _log.warning("%s; --sqlite has no effect any more, omit it", moved)

    async def _resume_cutover(self) -> None:
        """Complete or undo an interrupted cutover: PostgreSQL knows whether it took over."""
        try:
            await self._target.open()
            found = await self._inspect_settled()
        except StorageError as exc:
            raise CannotOpenError(
                "the cutover was interrupted, and only PostgreSQL knows whether it was completed, "
                f"but: {exc}"
            ) from exc
        record, state = found.record, self._current_state.state
        if record is None or record.source != self._source.store_id:
            raise CannotOpenError(
                "the cutover was interrupted, and this PostgreSQL has no record of it; give the "
                "right --postgres"
            )
        if state.restored >= 0:
            check(record, self._source, self._current_state)
        if record.phase is Phase.POSTGRES_ONLY:
            _log.warning("the cutover was interrupted; archiving the file now")
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
        """Inspect the target when no commit of the crashed server is pending any more.

        A pending commit of the takeover could still succeed. `claim` waits for it, because the
        commit has locked the record.
        """
        found = await self._target.inspect()
        record, state = found.record, self._current_state.state
        if record is None or record.source != self._source.store_id:
            return found
        if Phase.POSTGRES_ONLY in {record.phase, state.phase}:
            return found
        with contextlib.suppress(PreconditionError):  # For example, it has been finished.
            await self._target.claim(
                self._session.lease, record.source, state.phase, state.epoch, steal=True
            )
        return await self._target.inspect()

    async def _check_target(self) -> None:
        """Refuse to start if PostgreSQL has seen later changes, or another server uses it."""
        found = await self._inspect()
        if found is None and self._current_state.state.restored >= 0:
            self._refuse_unchecked()
        if found is None or found.record is None:
            return
        record = found.record
        if record.source != self._source.store_id:
            if record.phase is Phase.POSTGRES_ONLY or not self.phase.journals:
                return  # A blocker, but harmless: nothing is written there.
            _log.error("PostgreSQL belongs to another migration; it is not used")
            return
        check(record, self._source, self._current_state)
        await forget_restoration(self._source, self._current_state)
        await self._wait_for_the_lease(record)

    def _refuse_unchecked(self) -> NoReturn:
        """Refuse to start: only PostgreSQL knows whether a restored file lacks later changes."""
        alone = "" if self.phase.journals else ", or omit --postgres to serve the file alone"
        raise CannotOpenError(
            f"{self._source.place} was restored from a backup, and must be compared once with "
            f"{self._target.place}, which is unavailable; check that it runs, and start "
            f"again{alone}"
        )

    async def _wait_for_the_lease(self, record: TargetRecord) -> None:
        """Wait until the lease of a crashed server has expired."""
        waited = 0.0
        while self._is_held_by_another(record):
            if waited > LEASE_WITHIN:
                _refuse_second(record)
            pause = min(max(record.lease_seconds, 0.2), 2.0)
            await asyncio.sleep(pause)
            waited += pause
            found = await self._inspect()
            if found is None or found.record is None:
                return
            record = found.record

    def _is_held_by_another(self, record: TargetRecord) -> bool:
        ours = record.holder in {"", self._source.holder}
        return self.phase.journals and not ours and record.lease_seconds > 0

    async def _inspect(self) -> TargetState | None:
        """Return what is in PostgreSQL; None if it is unavailable or cannot be used."""

        async def inspect() -> TargetState:
            await self._target.open()
            return await self._target.inspect()

        try:
            return await bounded(inspect(), LOOK_WITHIN, self._target.place)
        except StorageError as exc:
            _log.warning("PostgreSQL is unavailable: %s", exc)
            return None

    def _end(self, record: TargetRecord) -> None:
        self._session.mark = record.backfill
        self._target.serve_alone()
        self._current_state.enter(
            self._current_state.state._replace(phase=Phase.POSTGRES_ONLY, epoch=record.epoch)
        )

    # ------------------------------------------------------------------ while it runs

    async def _backfill_done(self) -> None:
        """Discard earlier comparisons: they prove nothing about the completed copy."""
        self._shadow.reset()
        async with self._current_state.changing:
            state = self._current_state.state._replace(last_verification=None)
            await self._current_state.commit(self._source, state)

    async def _verify_complete_copies(self) -> None:
        """Start the verification of a complete copy, also after a restart."""
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
        f"another server, on {host}, holds the lease of this migration in PostgreSQL, and a "
        "migration has one server; stop that one first"
    )
