"""PostgreSQL lets its follower go in the last step: that is no other server's doing."""

from __future__ import annotations

import asyncio

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import FencedError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import BackfillMark, Lease, TargetRecord
from tests.migration.conftest import Place
from tests.support.drafts import draft
from tests.support.migrating_service import walk_to


class SlowToSay(PostgreSQLTarget):
    """Says that it has taken over only once the follower has asked for its lease again."""

    def __init__(self, options: PostgreSQLOptions) -> None:
        super().__init__(options)
        self.refused = asyncio.Event()

    async def finish(
        self,
        lease: Lease,
        epoch: int,
        last_revision: int,
        after: int | None = None,
        before: BackfillMark | None = None,
    ) -> None:
        await super().finish(lease, epoch, last_revision, after, before)
        await self.refused.wait()

    async def renew(self, lease: Lease) -> TargetRecord:
        try:
            return await super().renew(lease)
        except FencedError:
            self.refused.set()
            raise


async def test_cutover_renewal_during_takeover_does_not_fence(place: Place) -> None:
    options = PostgreSQLOptions(place.dsn, pool_min=1, pool_max=8)
    service = MigratingService(SQLiteSource(place.path), SlowToSay(options))
    try:
        await service.backend.open()
        await service.backend.save(draft("old"))
        await walk_to(service.control, Phase.POSTGRES_ONLY)
        assert (await service.backend.health()).healthy
        assert (await service.backend.get("old")).id == "old"
        await service.backend.save(draft("new"))
    finally:
        await service.backend.close()
