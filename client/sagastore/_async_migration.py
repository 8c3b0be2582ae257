"""The asyncio client's operations for a migration."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from sagastore import _convert_migration as convert
from sagastore._arguments import checked
from sagastore._async_paging import AsyncPager
from sagastore._call import Caller
from sagastore._convert import member
from sagastore._enums import Phase
from sagastore._migration_model import Migration, QuarantinedRow, VerifyProgress
from sagastore._model import Page
from sagastore.v1 import migration_pb2 as pb

__all__ = ["CHANGE_TIMEOUT", "VERIFY_TIMEOUT", "WATCH_TIMEOUT", "AsyncMigrationClient"]

CHANGE_TIMEOUT = 600.0
"""Total seconds; the change to the last phase reads the whole SQLite file several times."""
VERIFY_TIMEOUT = 300.0
"""Seconds without progress."""
WATCH_TIMEOUT = 15.0
"""Seconds without an update."""


class AsyncMigrationClient:
    """Watches and controls a migration; available as `AsyncClient.migration`.

    Besides the errors that a method documents, each method can raise
    `UnavailableError`, `DeadlineExceededError`, `UnauthenticatedError`,
    `PermissionDeniedError` and `InternalError`.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @checked
    async def get(self, *, timeout: float | None = None) -> Migration:
        """Return the state of the migration.

        Args:
            timeout: Total seconds; None for the client's timeout.
        """
        response = await self._caller.unary(
            "GetMigration",
            lambda e: e.migration.GetMigration,
            pb.GetMigrationRequest(),
            self._caller.deadline(timeout),
        )
        return convert.migration(response.migration)

    @checked
    async def watch(self, *, timeout: float = WATCH_TIMEOUT) -> AsyncGenerator[Migration, None]:
        """Yield the state of the migration on every change and every second.

        The iteration continues until the caller stops it, even if the server
        restarts. It then yields the current state, not the changes that
        happened in between.

        Args:
            timeout: Maximum seconds between updates, retries included.
        """
        responses = self._caller.stream(
            "WatchMigration",
            lambda e: e.migration.WatchMigration,
            pb.WatchMigrationRequest,
            timeout,
            endless=True,
        )
        async with aclosing(responses):
            async for response in responses:
                yield convert.migration(response.migration)

    @checked
    async def change_phase(
        self,
        phase: Phase | str,
        *,
        dry_run: bool = False,
        accept_quarantine: bool = False,
        timeout: float = CHANGE_TIMEOUT,
    ) -> Migration:
        """Move to the next or the previous phase without a restart.

        Idempotent: changing to the current phase succeeds, so the client
        retries if the connection breaks. The server completes a change that has
        started even if the timeout passes or the caller disconnects; call `get`
        for the result.

        Args:
            phase: The new phase, or its name, such as `dual-write`.
            dry_run: Check the preconditions and change nothing.
            accept_quarantine: Allow the change although rows are in quarantine.
            timeout: Total seconds. The change to the last phase verifies,
                checks and archives the SQLite file, which takes minutes if the
                file is large.

        Raises:
            FailedPreconditionError: The change is not allowed now and nothing
                has changed; `blockers` lists the unmet preconditions.
            InvalidArgumentError: `phase` is not a phase.
        """
        request = pb.ChangePhaseRequest(
            phase=pb.Phase.ValueType(member(Phase, phase, "phase")),
            dry_run=dry_run,
            accept_quarantine=accept_quarantine,
        )
        response = await self._caller.unary(
            "ChangePhase",
            lambda e: e.migration.ChangePhase,
            request,
            self._caller.deadline(timeout),
        )
        return convert.migration(response.migration)

    @checked
    async def control_backfill(
        self,
        *,
        paused: bool | None = None,
        batch_size: int | None = None,
        max_rows_per_second: int | None = None,
        timeout: float | None = None,
    ) -> Migration:
        """Pause, resume or throttle the backfill. None leaves a setting unchanged.

        Args:
            paused: True pauses, False resumes.
            batch_size: Rows per batch, 1 to 10,000.
            max_rows_per_second: The limit; 0 removes it.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            InvalidArgumentError: A value is out of range.
            FailedPreconditionError: The phase is not BACKFILL.
        """
        request = pb.ControlBackfillRequest(
            paused=paused, batch_size=batch_size, max_rows_per_second=max_rows_per_second
        )
        response = await self._caller.unary(
            "ControlBackfill",
            lambda e: e.migration.ControlBackfill,
            request,
            self._caller.deadline(timeout),
        )
        return convert.migration(response.migration)

    @checked
    async def verify(
        self, *, repair: bool = False, timeout: float = VERIFY_TIMEOUT
    ) -> AsyncGenerator[VerifyProgress, None]:
        """Compare every row of the two stores while writes continue.

        Yields progress; the last item has `done` set. A connection that breaks
        after the first item ends the verification.

        Args:
            repair: Queue the rows that differ for replication; SQLite is the
                source of truth.
            timeout: Maximum seconds between progress updates; before the first
                one, retries included.

        Raises:
            FailedPreconditionError: The phase has only one store.
        """
        responses = self._caller.stream(
            "Verify",
            lambda e: e.migration.Verify,
            lambda: pb.VerifyRequest(repair=repair),
            timeout,
            resume=False,
        )
        async with aclosing(responses):
            async for response in responses:
                yield convert.verify_progress(response)

    @checked
    def quarantine(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> AsyncPager[QuarantinedRow]:
        """List the quarantined rows: those that no message can represent, oldest entry first.

        Args:
            page_size: Rows per page: 0 means 50, above 500 means 500.
            page_token: Where to start: the `next_page_token` of a page.
            timeout: Seconds for each page; None for the client's timeout.

        Raises:
            InvalidArgumentError: The page size is negative, or the token is
                not from this list.
        """

        async def fetch(token: str) -> Page[QuarantinedRow]:
            request = pb.ListQuarantineRequest(page_size=page_size, page_token=token)
            response = await self._caller.unary(
                "ListQuarantine",
                lambda e: e.migration.ListQuarantine,
                request,
                self._caller.deadline(timeout),
            )
            return convert.quarantine_page(response)

        return AsyncPager(fetch, page_token)
