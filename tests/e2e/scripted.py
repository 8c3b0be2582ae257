"""A server with a scripted `MigrationControl`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from grpc import aio

from sagastore.v1.migration_pb2_grpc import MigrationServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.rpc.server import RpcServer
from sagastore_server.storage.errors import (
    Blocker,
    StorageError,
)
from sagastore_server.storage.migration import (
    BackfillState,
    BackfillStatus,
    Backlog,
    Inventory,
    MigrationControl,
    MigrationStatus,
    Mismatch,
    ShadowDifference,
    ShadowStatus,
    StatusSnapshot,
    Verification,
    VerifyProgress,
)
from sagastore_server.storage.model import NewMessage, SaveResult, Store, StoreHealth
from sagastore_server.storage.phase import Phase
from tests.support.memory import MemoryState, MemoryStorage

PROGRESS = VerifyProgress(500, 1000, (Mismatch("m-1", "DIFFERENT", ("content",)),), 1, 0, False)
EVERYTHING = MigrationStatus(
    phase=Phase.BACKFILL,
    epoch=7,
    backfill=BackfillStatus(
        BackfillState.PAUSED, "building idx_messages_tags 40 %", 11, 22, 3.5, 4.5, "retried"
    ),
    journal_rows=33,
    journal_lag_seconds=0.25,
    quarantined=44,
    last_verification=Verification(1_000_000, 2_500_001, 55, 2, 1, 99),
    blockers_to_next=(Blocker("BACKFILL_NOT_DONE", "wait until it is"),),
    stores=(
        StoreHealth(Store.SQLITE, True, "", 66, 2),
        StoreHealth(Store.POSTGRESQL, False, "it does not answer", -1, 0),
    ),
    shadow=ShadowStatus(
        77, 8, 9, (ShadowDifference(3_000_002, "Get", "1 message", "not found"),)
    ),
    reads_from_fallback=True,
    verifying=PROGRESS,
)  # fmt: skip
NOTHING = MigrationStatus(
    Phase.SQLITE_ONLY, 1, BackfillStatus(BackfillState.PENDING), 0, 0.0, 0, None, (), ()
)


class Scripted(MigrationControl):
    """Returns ``answer`` or raises ``error``, and records its arguments."""

    def __init__(self) -> None:
        self.answer = EVERYTHING
        self.error: StorageError | None = None
        self.arguments: list[object] = []
        self.watched = asyncio.Event()
        self.more = asyncio.Event()
        """Watchers and verifications wait for it after their first item."""
        self.before_item: Callable[[], None] = lambda: None
        """Called before each item of a watch."""
        self.ended = 0
        """Number of watches and verifications that have ended."""

    def snapshot(self) -> StatusSnapshot:
        status = self._answered()
        return StatusSnapshot(status.phase, status.epoch, status.backfill)

    async def backlog(self) -> Backlog:
        return Backlog()

    async def inventory(self) -> Inventory:
        return Inventory(self._answered().stores, 0)

    async def status(self) -> MigrationStatus:
        return self._answered()

    async def watch(self) -> AsyncIterator[MigrationStatus]:
        try:
            while True:
                self.before_item()
                yield self._answered()
                self.watched.set()
                await self.more.wait()
                self.more.clear()
        finally:
            self.ended += 1

    async def change_phase(
        self, phase: Phase, *, dry_run: bool, accept_quarantine: bool
    ) -> MigrationStatus:
        return self._answered(phase, dry_run, accept_quarantine)

    async def control_backfill(
        self, *, paused: bool | None, batch_size: int | None, max_rows_per_second: int | None
    ) -> MigrationStatus:
        return self._answered(paused, batch_size, max_rows_per_second)

    async def verify(self, *, repair: bool) -> AsyncIterator[VerifyProgress]:
        try:
            self._answered(repair)
            yield PROGRESS
            self.watched.set()
            await self.more.wait()
            yield PROGRESS._replace(compared=1000, mismatches=(), done=True)
        finally:
            self.ended += 1

    def _answered(self, *arguments: object) -> MigrationStatus:
        if arguments:
            self.arguments.append(arguments)
        if self.error is not None:
            raise self.error
        return self.answer


class Timed(MemoryStorage):
    """Records the durability timeouts of saves."""

    within: Sequence[float | None] = ()
    error: StorageError | None = None

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        self.within = (*self.within, everywhere_within)
        if self.error is not None:
            raise self.error
        result = await super().save(draft, if_revision)
        return result._replace(durable_on=(Store.SQLITE, Store.POSTGRESQL))


class Served:
    """A server, its control, and stubs."""

    def __init__(self) -> None:
        self.control = Scripted()
        self.backend = Timed(MemoryState())
        self.server = RpcServer(self.backend, self.control)

    async def start(self) -> None:
        await self.backend.open()
        port = await self.server.start("127.0.0.1:0")
        await self.server.start_accepting()
        self.channel = aio.insecure_channel(f"127.0.0.1:{port}")
        self.migration = MigrationServiceStub(self.channel)
        self.storage = StorageServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()
        await self.server.stop()
