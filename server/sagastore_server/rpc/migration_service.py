"""MigrationService: what sagastore/v1/migration.proto promises, over any control."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sagastore.v1 import migration_pb2
from sagastore_server.rpc import migration_convert, quarantine_page, requests, tokens
from sagastore_server.rpc.handlers import endless, interruptible
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.migration import MigrationControl


class MigrationServicer:
    """Serves the RPCs by their names; ``handlers`` connects it with gRPC."""

    def __init__(self, backend: StorageBackend, control: MigrationControl) -> None:
        """Tell of the migration that ``control`` steers, and of the quarantine of ``backend``."""
        self._backend = backend
        self._control = control

    async def GetMigration(
        self, request: migration_pb2.GetMigrationRequest
    ) -> migration_pb2.GetMigrationResponse:
        """Tell where the migration stands."""
        status = await self._control.status()
        return migration_pb2.GetMigrationResponse(migration=migration_convert.migration(status))

    @endless
    async def WatchMigration(
        self, request: migration_pb2.WatchMigrationRequest
    ) -> AsyncIterator[migration_pb2.WatchMigrationResponse]:
        """Tell where the migration stands, again and again."""
        async for status in self._control.watch():
            migration = migration_convert.migration(status)
            yield migration_pb2.WatchMigrationResponse(migration=migration)

    async def ChangePhase(
        self, request: migration_pb2.ChangePhaseRequest
    ) -> migration_pb2.ChangePhaseResponse:
        """Go to another phase."""
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
        """Compare the stores, and tell how far that is."""
        async for progress in self._control.verify(repair=request.repair):
            yield migration_convert.progress(progress)

    async def ListQuarantine(
        self, request: migration_pb2.ListQuarantineRequest
    ) -> migration_pb2.ListQuarantineResponse:
        """Read a page of the quarantine."""
        size = requests.page_size(request.page_size)
        key = tokens.request_key("ListQuarantine")
        after = 0
        if request.page_token:
            after = int(tokens.unseal(key, request.page_token, "page_token", (int,))[0] or 0)
        rows, more = await quarantine_page.quarantine_page(self._backend, size, after)
        answer = migration_pb2.ListQuarantineResponse()
        for row in rows:
            answer.rows.add(
                source_key=row.source_key, reason=row.reason, field=row.field, row=row.row
            )
        if more:
            answer.next_page_token = tokens.seal(key, (rows[-1].number,))
        return answer
