"""MigrationService: the servicer of sagastore/v1/migration.proto, over any `MigrationControl`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sagastore.v1 import migration_pb2
from sagastore_server.rpc import migration_convert, page_tokens, requests
from sagastore_server.rpc.handlers import endless, interruptible
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.model import QuarantinedRow

_ROWS_PER_READ = 25
"""Rows of the quarantine per read, which bounds the memory beyond the page: a row can be large."""


class MigrationServicer:
    """Implements each RPC as the method of its name; `handlers` connects it to gRPC."""

    def __init__(self, backend: StorageBackend, control: MigrationControl) -> None:
        """Serve the migration of ``control`` and the quarantine of ``backend``."""
        self._backend = backend
        self._control = control

    async def GetMigration(
        self, request: migration_pb2.GetMigrationRequest
    ) -> migration_pb2.GetMigrationResponse:
        """Return the state of the migration."""
        status = await self._control.status()
        return migration_pb2.GetMigrationResponse(migration=migration_convert.migration(status))

    @endless
    async def WatchMigration(
        self, request: migration_pb2.WatchMigrationRequest
    ) -> AsyncIterator[migration_pb2.WatchMigrationResponse]:
        """Stream the state of the migration: the current one, and each change."""
        async for status in self._control.watch():
            migration = migration_convert.migration(status)
            yield migration_pb2.WatchMigrationResponse(migration=migration)

    async def ChangePhase(
        self, request: migration_pb2.ChangePhaseRequest
    ) -> migration_pb2.ChangePhaseResponse:
        """Change the phase."""
        status = await self._control.change_phase(
            requests.phase(request),
            dry_run=request.dry_run,
            accept_quarantine=request.accept_quarantine,
        )
        return migration_pb2.ChangePhaseResponse(migration=migration_convert.migration(status))

    async def ControlBackfill(
        self, request: migration_pb2.ControlBackfillRequest
    ) -> migration_pb2.ControlBackfillResponse:
        """Pause, resume or throttle the backfill."""
        wanted = requests.backfill(request)
        status = await self._control.control_backfill(
            paused=wanted.paused,
            batch_size=wanted.batch_size,
            max_rows_per_second=wanted.max_rows_per_second,
        )
        return migration_pb2.ControlBackfillResponse(migration=migration_convert.migration(status))

    @interruptible
    async def Verify(
        self, request: migration_pb2.VerifyRequest
    ) -> AsyncIterator[migration_pb2.VerifyResponse]:
        """Compare the stores, and stream the progress."""
        async for progress in self._control.verify(repair=request.repair):
            yield migration_convert.progress(progress)

    async def ListQuarantine(
        self, request: migration_pb2.ListQuarantineRequest
    ) -> migration_pb2.ListQuarantineResponse:
        """Read a page of the quarantine."""
        size = requests.page_size(request.page_size)
        key = page_tokens.request_key("ListQuarantine")
        after = 0
        if request.page_token:
            after = int(
                page_tokens.decode(key, request.page_token, "page_token", (int,)).cursor[0] or 0
            )
        rows, more = await _quarantine_page(self._backend, size, after)
        response = migration_pb2.ListQuarantineResponse()
        for row in rows:
            response.rows.add(
                source_key=row.source_key, reason=row.reason, field=row.field, row=row.row
            )
        if more:
            response.next_page_token = page_tokens.encode(key, (rows[-1].number,))
        return response


async def _quarantine_page(
    backend: StorageBackend, size: int, after: int
) -> tuple[list[QuarantinedRow], bool]:
    """Read a page of at most ``size`` rows and MAX_PAGE_BYTES, but of at least one row.

    Returns:
        The rows, and whether more rows follow.

    """
    page: list[QuarantinedRow] = []
    room = MAX_PAGE_BYTES
    while True:
        last = page[-1].number if page else after
        rows = await backend.quarantine(last, min(size + 1 - len(page), _ROWS_PER_READ))
        for row in rows:
            room -= _size(row)
            if page and (room < 0 or len(page) == size):
                return page, True
            page.append(row)
        if not rows:
            return page, False


def _size(row: QuarantinedRow) -> int:
    """Return an upper bound of the size of a row in a response, in bytes."""
    return len(row.row) + 4 * (len(row.source_key) + len(row.reason) + len(row.field)) + 64
