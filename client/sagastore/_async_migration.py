"""Watches and steers a migration."""

# A timeout here goes with the call to the server, or spans several calls.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from sagastore import _convert_migration as convert
from sagastore._call import Caller
from sagastore._convert import naming
from sagastore._enums import Phase
from sagastore._migration_model import Migration, QuarantinedRow, VerifyProgress
from sagastore._model import Page
from sagastore._paging import AsyncPager
from sagastore.errors import SagaStoreError, UnavailableError
from sagastore.v1 import migration_pb2 as pb

__all__ = ["CHANGE_TIMEOUT", "VERIFY_TIMEOUT", "WATCH_TIMEOUT", "AsyncMigrationClient"]

CHANGE_TIMEOUT = 600.0
"""Seconds in all; the last phase reads the whole SQLite file several times."""
VERIFY_TIMEOUT = 300.0
"""Seconds without progress."""
WATCH_TIMEOUT = 15.0
"""Seconds without news."""


class AsyncMigrationClient:
    """The part of `AsyncClient` for operators; see `AsyncClient.migration`.

    Every method raises `UnavailableError`, `DeadlineExceededError`,
    `UnauthenticatedError`, `PermissionDeniedError` and `InternalError` besides
    what it names.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def get(self, *, timeout: float | None = None) -> Migration:
        """Tell where the migration stands.

        Args:
            timeout: Seconds in all; None: the client's timeout.
        """
        response = await self._caller.unary(
            "GetMigration",
            lambda e: e.migration.GetMigration,
            pb.GetMigrationRequest(),
            self._caller.deadline(timeout),
        )
        return convert.migration(response.migration)

    async def watch(self, *, timeout: float = WATCH_TIMEOUT) -> AsyncGenerator[Migration, None]:
        """Yield where the migration stands, on every change and each second.

        Goes on until the caller stops iterating: also over a restart of the
        server, whether that breaks the stream or ends it in good order. What
        changed in between is not told, only how it stands afterwards.

        Args:
            timeout: Seconds without any news after which it gives up. Before
                the first news, as soon as the client's `RetryPolicy` says.
        """
        patience = self._caller.patience(timeout)
        while True:
            # A second patience, inside, would not know that there was news before.
            responses = self._caller.stream(
                "WatchMigration",
                lambda e: e.migration.WatchMigration,
                pb.WatchMigrationRequest,
                timeout,
                resume=False,
            )
            error: SagaStoreError = UnavailableError("WatchMigration: the server ended the stream")
            try:
                async with aclosing(responses):
                    async for response in responses:
                        patience.progress()
                        yield convert.migration(response.migration)
            except SagaStoreError as exc:
                if not patience.progressed:
                    raise
                error = exc
            await patience.pause(error, "WatchMigration")

    async def change_phase(
        self,
        phase: Phase,
        *,
        dry_run: bool = False,
        accept_quarantine: bool = False,
        timeout: float = CHANGE_TIMEOUT,
    ) -> Migration:
        """Move to the next phase, or one back, without a restart.

        To be in the phase already is success, so where the connection breaks
        during the change, it is safely sent again. A change that has begun goes
        on when the timeout has passed or the caller is gone: `get` tells.

        Args:
            phase: The phase to go to.
            dry_run: Answer as the change would, and change nothing.
            accept_quarantine: Rows in quarantine do not stand in the way.
            timeout: Seconds in all. The last phase verifies, checks and
                archives the SQLite file, which takes minutes if it is large.

        Raises:
            FailedPreconditionError: The change is not allowed now; `blockers`
                names everything in the way, and nothing has changed.
            InvalidArgumentError: It is not a phase.
        """
        request = pb.ChangePhaseRequest(
            phase=pb.Phase.ValueType(phase),
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

    async def control_backfill(
        self,
        *,
        paused: bool | None = None,
        batch_size: int | None = None,
        max_rows_per_second: int | None = None,
        timeout: float | None = None,
    ) -> Migration:
        """Pause, resume or throttle the backfill. What is None stays as it is.

        Args:
            paused: True pauses, False resumes.
            batch_size: Rows in a batch: 1 to 10,000.
            max_rows_per_second: 0 lifts the limit.
            timeout: Seconds in all; None: the client's timeout.

        Raises:
            InvalidArgumentError: A value is out of range.
            FailedPreconditionError: The phase is not BACKFILL.
        """
        with naming("request"):
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

    async def verify(
        self, *, repair: bool = False, timeout: float = VERIFY_TIMEOUT
    ) -> AsyncGenerator[VerifyProgress, None]:
        """Compare every row of the two stores while writes go on.

        Yields progress; the last one has `done` set. Once it has begun, a
        broken connection ends it.

        Args:
            repair: Put what differs back into the journal, SQLite being right.
            timeout: Seconds without any progress after which it gives up.

        Raises:
            FailedPreconditionError: The phase has one store only.
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

    def quarantine(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> AsyncPager[QuarantinedRow]:
        """List the rows that no message can represent, in the order of setting aside.

        Args:
            page_size: Rows to ask for at a time: 0 means 50, above 500 means 500.
            page_token: Where to begin: the `next_page_token` of a page.
            timeout: Seconds for each page; None: the client's timeout.

        Raises:
            InvalidArgumentError: The page size is negative, or the token is
                not one of this list.
        """

        async def fetch(token: str) -> Page[QuarantinedRow]:
            with naming("page_token"):
                request = pb.ListQuarantineRequest(page_size=page_size, page_token=token)
            response = await self._caller.unary(
                "ListQuarantine",
                lambda e: e.migration.ListQuarantine,
                request,
                self._caller.deadline(timeout),
            )
            return convert.quarantine_page(response)

        return AsyncPager(fetch, page_token)
