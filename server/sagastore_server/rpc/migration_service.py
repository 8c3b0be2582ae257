"""MigrationService: the truth of a service that has one store, and moves nothing yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NoReturn

from sagastore.v1 import migration_pb2
from sagastore_server.rpc import convert, paging, requests, tokens
from sagastore_server.rpc.status import NotYetError
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import Store, StoreHealth

_FIRST_EPOCH = 1
"""The epoch before any change of phase."""

_BLOCKER = migration_pb2.Blocker(
    reason="MIGRATION_NOT_SUPPORTED",
    detail="this version of SagaStore does not move messages from SQLite to PostgreSQL yet",
)


class MigrationServicer:
    """Serves the RPCs by their names; ``handlers`` connects it with gRPC."""

    def __init__(self, backend: StorageBackend) -> None:
        """Tell of ``backend``."""
        self._backend = backend

    async def GetMigration(
        self, request: migration_pb2.GetMigrationRequest
    ) -> migration_pb2.GetMigrationResponse:
        """Tell which phase the service is in, the first or the last, and how its store does."""
        health = await self._backend.health()
        last = health.store is Store.POSTGRESQL
        migration = migration_pb2.Migration(
            phase=migration_pb2.PHASE_POSTGRES_ONLY if last else migration_pb2.PHASE_SQLITE_ONLY,
            epoch=_FIRST_EPOCH,
            backfill=migration_pb2.Backfill(state=migration_pb2.Backfill.STATE_PENDING),
            quarantined=await self._backend.quarantine_count() if health.healthy else 0,
            blockers_to_next=[] if last else [_BLOCKER],
            stores=[_health(health)],
        )
        return migration_pb2.GetMigrationResponse(migration=migration)

    async def ListQuarantine(
        self, request: migration_pb2.ListQuarantineRequest
    ) -> migration_pb2.ListQuarantineResponse:
        """Read a page of the quarantine."""
        size = requests.page_size(request.page_size)
        key = tokens.request_key("ListQuarantine")
        after = 0
        if request.page_token:
            after = int(tokens.unseal(key, request.page_token, "page_token", (int,))[0] or 0)
        rows, more = await paging.quarantine_page(self._backend, size, after)
        answer = migration_pb2.ListQuarantineResponse()
        for row in rows:
            answer.rows.add(
                source_key=row.source_key, reason=row.reason, field=row.field, row=row.row
            )
        if more:
            answer.next_page_token = tokens.seal(key, (rows[-1].number,))
        return answer

    async def WatchMigration(
        self, request: migration_pb2.WatchMigrationRequest
    ) -> AsyncIterator[migration_pb2.WatchMigrationResponse]:
        """Refuse: nothing moves yet."""
        _refuse("WatchMigration")
        yield  # type: ignore[unreachable]  # makes this a generator

    async def ChangePhase(
        self, request: migration_pb2.ChangePhaseRequest
    ) -> migration_pb2.ChangePhaseResponse:
        """Refuse: there is no other phase yet."""
        _refuse("ChangePhase")

    async def ControlBackfill(
        self, request: migration_pb2.ControlBackfillRequest
    ) -> migration_pb2.ControlBackfillResponse:
        """Refuse: there is no backfill yet."""
        _refuse("ControlBackfill")

    async def Verify(
        self, request: migration_pb2.VerifyRequest
    ) -> AsyncIterator[migration_pb2.VerifyResponse]:
        """Refuse: there is nothing to compare with yet."""
        _refuse("Verify")
        yield  # type: ignore[unreachable]  # makes this a generator


def _health(health: StoreHealth) -> migration_pb2.StoreHealth:
    return migration_pb2.StoreHealth(
        store=convert.STORES[health.store],
        healthy=health.healthy,
        detail=health.detail,
        messages=health.messages,
        schema_version=health.schema_version,
    )


def _refuse(name: str) -> NoReturn:
    raise NotYetError(f"{name} is not served by this version: it moves no messages yet")
