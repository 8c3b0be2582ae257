"""Preconditions of a change of phase. Every unmet one is reported as a blocker."""

from __future__ import annotations

from sagastore_server.migration.attachment import committed
from sagastore_server.migration.current_state import CurrentState, MigrationContext
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.timeouts import bounded
from sagastore_server.storage.errors import (
    Blocker,
    CannotOpenError,
    PreconditionError,
    StorageError,
)
from sagastore_server.storage.migration import BackfillState, ShadowStatus, Verification
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    MigrationSource,
    TargetState,
)

LAG_LIMIT = 10_000
"""Journal entries that may be pending before the change to READ_POSTGRES: as many as the target
applies in a few seconds. The fence is closed only near the end of the journal."""

ANSWER_WITHIN = 3.0
"""Seconds for the target to answer a request of a precondition."""


class Preconditions:
    """Checks the preconditions of a change of phase. Read-only."""

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
    ) -> None:
        """Prepare to check a migration."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._session = replicator.session
        self._fallback = replicator.fallback

    async def blockers(
        self, wanted: Phase, shadow: ShadowStatus, *, accept_quarantine: bool = False
    ) -> list[Blocker]:
        """Return the blockers of a change to ``wanted``; empty: it may happen."""
        phase = self._current_state.phase
        if wanted is phase.preceding:
            return []
        if wanted is not phase.following:
            return [_wrong_order(phase, wanted)]
        if self._session.fenced:
            return [Blocker("NOT_THE_HOLDER", "another server has taken over this migration")]
        if wanted is Phase.DUAL_WRITE:
            return await self._target_is_available()
        found = self._journal_is_applied()
        if wanted in {Phase.READ_POSTGRES, Phase.POSTGRES_ONLY}:
            found += self._backfill_is_done()
            if not found:
                found += await self._indexes_are_valid()
            found += self._is_analysed()
            found += self._verified()
            found += await self._quarantine_is_accepted(accept_quarantine)
        if wanted is Phase.READ_POSTGRES:
            found += _shadow_agrees(shadow)
            found += await self._lag_is_small()
        if wanted is Phase.POSTGRES_ONLY and not found and not self._fallback.current:
            found.append(
                Blocker(
                    "POSTGRES_BEHIND",
                    "SQLite answers reads, because PostgreSQL was down and has not caught up; "
                    "wait until it has",
                )
            )
        return found

    async def _target_is_available(self) -> list[Blocker]:
        try:
            found = await bounded(self._inspect(), ANSWER_WITHIN, self._target.place)
        except PreconditionError as exc:
            return list(exc.blockers)
        except CannotOpenError as exc:
            return [Blocker("POSTGRES_NOT_USABLE", str(exc))]
        except StorageError as exc:
            return [Blocker("POSTGRES_UNAVAILABLE", str(exc))]
        await self._source.flush()
        return judge(found, self._source, self._current_state, self._target.place)

    async def _inspect(self) -> TargetState:
        await self._target.open()
        return await self._target.inspect()

    def _journal_is_applied(self) -> list[Blocker]:
        trouble = self._session.trouble
        if trouble is not None:
            return [trouble]
        if not self._fallback.attached:
            return [
                Blocker(
                    "JOURNAL_NOT_APPLIED",
                    "the journal is not applied yet; check that PostgreSQL runs, and retry",
                )
            ]
        return []

    def _backfill_is_done(self) -> list[Blocker]:
        mark = self._session.mark
        if mark.state is BackfillState.DONE:
            return []
        hint = "wait for it" if self._current_state.phase.copies else "go back to backfill"
        if self._current_state.state.paused:
            hint = "it is paused; resume it with sagastore migrate resume"
        far = f"has copied {mark.copied:,} of {mark.total:,} messages"
        if mark.total and mark.copied >= mark.total:
            far = "has copied all messages and builds the indexes"
        return [Blocker("BACKFILL_NOT_DONE", f"the backfill {far}; {hint}")]

    async def _indexes_are_valid(self) -> list[Blocker]:
        try:
            indexes = await bounded(self._target.indexes(), ANSWER_WITHIN, "PostgreSQL")
        except StorageError as exc:
            return [Blocker("POSTGRES_UNAVAILABLE", str(exc))]
        missing = [index.name for index in indexes if not index.valid]
        if not missing:
            return []
        return [
            Blocker(
                "INDEXES_NOT_VALID",
                f"not built, or invalid: {', '.join(missing)}; drop what is invalid, go back to "
                "dual-write and to backfill again, which builds what is missing",
            )
        ]

    def _is_analysed(self) -> list[Blocker]:
        """Both stores must find the same messages before the other one answers searches."""
        return [
            Blocker(
                "SEARCH_INDEX_NOT_READY",
                f"the search index of {store.place} is being made anew by a newer version: "
                f"{progress.done:,} of {progress.total:,} messages; wait for it",
            )
            for store in (self._source, self._target)
            if (progress := store.reanalysis) is not None
        ]

    def _verified(self) -> list[Blocker]:
        last: Verification | None = self._current_state.state.last_verification
        if last is None:
            return [
                Blocker(
                    "NOT_VERIFIED",
                    "the stores have not been compared since the backfill; a verification starts "
                    "automatically after it, or run: sagastore migrate verify",
                )
            ]
        if last.mismatch_count:
            return [
                Blocker(
                    "VERIFICATION_MISMATCH",
                    f"the last verification found {last.mismatch_count:,} rows that differ; run: "
                    "sagastore migrate verify --repair, and then sagastore migrate verify",
                )
            ]
        return []

    async def _quarantine_is_accepted(self, accept: bool) -> list[Blocker]:
        count = await self._source.quarantine_count()
        if not count or accept or self._current_state.state.accepted_quarantine == count:
            return []
        return [
            Blocker(
                "QUARANTINE_NOT_ACCEPTED",
                f"{count:,} rows are in quarantine and are not served; inspect them (sagastore "
                "migrate quarantine), then accept them with --accept-quarantine",
            )
        ]

    async def _lag_is_small(self) -> list[Blocker]:
        rows = (await self._source.journal_status(self._fallback.applied)).rows
        if rows <= LAG_LIMIT:
            return []
        return [
            Blocker(
                "JOURNAL_LAG",
                f"PostgreSQL lacks {rows:,} changes, more than {LAG_LIMIT:,}; wait until it has "
                "caught up",
            )
        ]


def judge(
    found: TargetState, source: MigrationSource, current_state: CurrentState, place: str
) -> list[Blocker]:
    """Return why the target cannot be claimed for this migration; empty: it can."""
    record = found.record
    if record is None:
        if found.empty:
            return []
        return [
            Blocker(
                "TARGET_NOT_EMPTY",
                f"{place} holds messages already; give the migration an empty database",
            )
        ]
    if record.source != source.store_id:
        return [
            Blocker(
                "OTHER_MIGRATION",
                f"{place} belongs to the migration of another SQLite file; give this one an "
                "empty database",
            )
        ]
    older = record.epoch > current_state.state.epoch or record.applied > committed(
        source, current_state
    )
    if record.phase is Phase.POSTGRES_ONLY or older:
        return [
            Blocker(
                "SOURCE_IS_OLD",
                f"{source.place} is older than its copy in {place}; it seems to be a copy or a "
                "restored backup; use the newest file",
            )
        ]
    return []


def _shadow_agrees(shadow: ShadowStatus) -> list[Blocker]:
    if not shadow.different:
        return []
    return [
        Blocker(
            "SHADOW_READS_DIFFER",
            f"{shadow.different:,} of {shadow.compared:,} reads compared were answered "
            "differently; see sagastore migrate status, then verify: a verification without a "
            "mismatch resets the count",
        )
    ]


def _wrong_order(phase: Phase, wanted: Phase) -> Blocker:
    if phase is Phase.POSTGRES_ONLY:
        return Blocker("NO_WAY_BACK", "postgres-only is the last phase and cannot be left")
    ways = [way.slug for way in (phase.preceding, phase.following) if way is not None]
    return Blocker(
        "NOT_THE_NEXT_PHASE",
        f"cannot change from {phase.slug} to {wanted.slug}; the next steps are {' or '.join(ways)}",
    )
