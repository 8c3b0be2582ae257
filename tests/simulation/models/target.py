"""ModelTarget: a model of PostgreSQLReplica for a deterministic simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from sagastore_server.postgresql import lease as leases
from sagastore_server.postgresql.indexes import LATE
from sagastore_server.postgresql.lease import LEASE_SECONDS, Claim
from sagastore_server.postgresql.schema import SCHEMA_VERSION
from sagastore_server.storage.base import ReadyTerms
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import (
    Blocker,
    CannotOpenError,
    FencedError,
    PreconditionError,
    StorageError,
    TargetSetBackError,
    UnavailableError,
)
from sagastore_server.storage.model import (
    BulkResult,
    Draft,
    Message,
    OnConflict,
    QuarantinedRow,
    SaveResult,
    Store,
    StoreHealth,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    BackfillMark,
    Carried,
    CarriedTally,
    Entry,
    IndexState,
    Lease,
    MigrationTarget,
    Prepared,
    TargetRecord,
    TargetState,
)
from tests.simulation.models.carried import tally_of
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.models.reads import Rows, SnapshotReads
from tests.simulation.models.transaction import Read, Transaction, Write

T = TypeVar("T")

COMMAND_TIMEOUT = 17.0
"""Seconds after which a client gives a statement up: the default of ``PostgreSQLOptions`` and the
margin for the network (``postgresql.pool``)."""

ACQUIRE_TIMEOUT = 5.0
"""Seconds that a client waits for a connection at most, and for one to be closed."""

_RECORD = "\0record"
"""Lock of the one row of ``migration``."""


@dataclass(frozen=True)
class Ready(Prepared):
    """Rows to copy, each id once."""

    rows: list[Message]


class ModelTarget(SnapshotReads, MigrationTarget):
    """The target of a migration on a ``PostgresServer``, used by one process.

    Overridable for planted faults: ``_holding``, ``_replaces``, ``_bury``, ``_upsert``,
    ``apply``, ``prepare``.
    """

    def __init__(self, server: PostgresServer, process: Process, now: Callable[[], int]) -> None:
        """Prepare to use ``server``; ``now`` is the process's wall clock, in microseconds."""
        self._server = server
        self.process = process
        self._now = now
        self._open = False
        self._under_way: dict[Transaction, None] = {}

    @property
    def place(self) -> str:
        """See the contract."""
        return "PostgreSQL at model"

    def on_connection_loss(self, listener: Callable[[], None]) -> None:
        """See the contract."""
        self._server.on_connection_loss(self.process, listener)

    # ------------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """See the contract. Does nothing if it is open; whether it answers, calls tell."""
        self.process.check_alive()
        if self._open:
            return
        self._open = True
        try:
            await self._ask(Read(lambda: None))
        except StorageError as exc:
            self._open = False
            raise CannotOpenError(f"cannot use {self.place}: {exc}") from exc
        except BaseException:
            self._open = False
            raise

    async def close(self) -> None:
        """See the contract; waits for what is under way as long as the real pool does."""
        self.process.check_alive()
        self._open = False
        answers = [transaction.answer for transaction in self._under_way]
        if answers:
            await asyncio.wait(answers, timeout=ACQUIRE_TIMEOUT)

    # ------------------------------------------------------------------ transactions

    async def _ask(self, work: Read | Write, patience: float | None = COMMAND_TIMEOUT) -> object:
        """Have a transaction carried out; give up after ``patience`` seconds."""
        self.process.check_alive()
        if not self._open:
            raise UnavailableError("the store is not open; try again")
        transaction = Transaction(self._server, self.process, work)
        self._under_way[transaction] = None
        try:
            done, _ = await asyncio.wait({transaction.answer}, timeout=patience)
        except asyncio.CancelledError:
            transaction.lose(silent=True)
            await self._give_up()
            raise
        finally:
            del self._under_way[transaction]
        if not done:
            transaction.lose(silent=True)
            raise UnavailableError("the PostgreSQL store did not answer in time; try again")
        return transaction.answer.result()

    async def _give_up(self) -> None:
        """Tell PostgreSQL to cancel a statement, which can hang as well."""
        if self._server.held is not None:
            waiting = asyncio.ensure_future(self._server.held.wait())
            await asyncio.wait({waiting}, timeout=ACQUIRE_TIMEOUT)
            waiting.cancel()

    async def _read(
        self, look: Callable[[PostgresServer], T], patience: float | None = COMMAND_TIMEOUT
    ) -> T:
        return cast("T", await self._ask(Read(lambda: look(self._server)), patience))

    async def _look(self, look: Callable[[Rows], T]) -> T:
        server = self._server
        if server.read_failures and server.draw.random() < server.read_failures:
            self.process.check_alive()
            await asyncio.sleep(server.pause(ACQUIRE_TIMEOUT))
            raise UnavailableError("the PostgreSQL store did not answer in time; try again")
        return await self._read(lambda server: look(server.rows))

    async def count(self) -> int:
        """See the contract; on a connection of its own, without a time-out."""
        return await self._read(lambda server: len(server.rows), None)

    async def health(self) -> StoreHealth:
        """See the contract; a database without our schema is healthy, and empty."""
        try:
            messages, schema = await self._read(lambda server: (len(server.rows), server.schema))
        except StorageError as exc:
            return StoreHealth(Store.POSTGRESQL, False, str(exc), -1, 0)
        return StoreHealth(Store.POSTGRESQL, True, "", messages, schema)

    # ------------------------------------------------------------------ writes of POSTGRES_ONLY

    async def save(
        self, draft: Draft, if_revision: int | None = None, everywhere_within: float | None = None
    ) -> SaveResult:
        """See the contract."""
        return await self._write([draft.id], lambda changes: changes.save(draft, if_revision))

    async def bulk_save(
        self, drafts: Sequence[Draft], on_conflict: OnConflict, terms: ReadyTerms | None = None
    ) -> BulkResult:
        """See the contract."""
        ids = [draft.id for draft in drafts]
        return await self._write(ids, lambda changes: changes.bulk_save(drafts, on_conflict))

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write([message_id], lambda changes: changes.delete(message_id, if_revision))

    async def _write(self, ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
        """Carry out one write in a transaction of its own."""
        server = self._server
        wanted = sorted(set(ids))

        def execute() -> Callable[[], T]:
            first = server.revision + 1
            # As of a sequence: what a transaction took is gone, even if it is rolled back.
            server.revision += len(wanted)
            before = {key: server.rows[key] for key in wanted if key in server.rows}
            revisions = range(first, server.revision + 1)
            changes = Changes(before, revisions, self._now(), (Store.POSTGRESQL,))
            answer = apply(changes)
            self._check_guard(changes)

            def commit() -> T:
                self._check_guard(changes)
                self._store(changes)
                return answer

            return commit

        return cast("T", await self._ask(Write(wanted, execute)))

    def _check_guard(self, changes: Changes) -> None:
        """Refuse what the triggers refuse: statements that change rows during a migration."""
        record = self._server.record
        if changes.after and record is not None and record.phase is not Phase.POSTGRES_ONLY:
            raise FencedError("the PostgreSQL store belongs to a migration from SQLite")

    def _store(self, changes: Changes) -> None:
        for key, message in changes.after.items():
            if message is None:
                self._server.rows.pop(key, None)
            else:
                self._server.rows[key] = message
        self._server.tombs.update(changes.buried)

    # ------------------------------------------------------------------ the record

    async def inspect(self) -> TargetState:
        """See the contract."""
        return await self._read(
            lambda server: TargetState(server.schema, not server.has_content, self._seen())
        )

    def _seen(self) -> TargetRecord | None:
        """Return the record with what is left of the lease."""
        record = self._server.record
        if record is None:
            return None
        left = self._server.lease_until - asyncio.get_running_loop().time()
        return record._replace(lease_seconds=left)

    async def claim(
        self, lease: Lease, source: str, phase: Phase, epoch: int, *, steal: bool = False
    ) -> TargetRecord:
        """See the contract."""
        server = self._server
        wanted = Claim(lease, source, phase, epoch, steal)

        def execute() -> Callable[[], TargetRecord]:
            self._check_claim(wanted)
            until = _lease_end()

            def commit() -> TargetRecord:
                self._check_claim(wanted)
                record = server.record or self._new_record(wanted)
                server.schema = SCHEMA_VERSION
                server.record = record._replace(
                    holder=lease.holder, session=lease.session, lease_seconds=LEASE_SECONDS
                )
                server.lease_until = until
                return server.record

            return commit

        return cast("TargetRecord", await self._ask(Write([_RECORD], execute)))

    def _check_claim(self, wanted: Claim) -> None:
        record = self._seen()
        if record is not None:
            leases._check(record, wanted, self.place)
        elif self._server.has_content:
            detail = f"{self.place} holds rows already that did not come from this SQLite file"
            raise PreconditionError((Blocker("TARGET_NOT_EMPTY", detail),))

    def _new_record(self, wanted: Claim) -> TargetRecord:
        """Begin the migration in an empty database."""
        server = self._server
        server.tombs.clear()
        server.extras.clear()
        server.indexes = dict.fromkeys(LATE, False)
        return TargetRecord(
            wanted.source, wanted.phase, wanted.epoch, *wanted.lease, 0.0, 0, BackfillMark()
        )

    async def _holding(
        self,
        lease: Lease,
        work: Callable[[PostgresServer], None],
        applied: int = 0,
        check: Callable[[TargetRecord], None] | None = None,
    ) -> TargetRecord:
        """Do ``work`` at the commit of a transaction that holds the lease.

        ``check`` may refuse the record as it was before. Returns the record with ``applied``
        raised and the lease extended, but without what ``work`` has changed in it.
        """
        server = self._server

        def execute() -> Callable[[], TargetRecord]:
            record = self._held_by(lease)
            if check is not None:
                check(record)
            held = record._replace(
                applied=max(record.applied, applied), lease_seconds=LEASE_SECONDS
            )
            until = _lease_end()

            def commit() -> TargetRecord:
                server.record, server.lease_until = held, until
                work(server)
                return held

            return commit

        return cast("TargetRecord", await self._ask(Write([_RECORD], execute)))

    def _held_by(self, lease: Lease) -> TargetRecord:
        record = self._server.record
        if record is None or not lease.session or (record.holder, record.session) != lease:
            raise FencedError("another server has taken over the migration to PostgreSQL")
        return record

    async def renew(self, lease: Lease) -> TargetRecord:
        """See the contract."""
        return await self._holding(lease, lambda _: None)

    async def release(self, lease: Lease) -> None:
        """See the contract."""
        server = self._server

        def commit() -> None:
            record = server.record
            if record is not None and (record.holder, record.session) == lease:
                # The name of the last holder stays, for one that comes back after a while.
                server.record = record._replace(session="")
                server.lease_until = asyncio.get_running_loop().time()

        await self._ask(Write([_RECORD], lambda: commit))

    async def set_phase(self, lease: Lease, phase: Phase, epoch: int, base: int) -> TargetRecord:
        """See the contract."""
        record = await self._holding(
            lease, lambda server: _note(server, phase=phase, epoch=epoch), base
        )
        return record._replace(phase=phase, epoch=epoch)

    async def finish(self, lease: Lease, epoch: int, last_revision: int) -> None:
        """See the contract."""

        def end(server: PostgresServer) -> None:
            # A sequence that was never used counts as 1 (setval of its last_value).
            server.revision = max(server.revision, last_revision, 1)
            server.lease_until = asyncio.get_running_loop().time()
            _note(server, phase=Phase.POSTGRES_ONLY, epoch=epoch, holder="", session="")

        await self._holding(lease, end)

    # ------------------------------------------------------------------ the rows

    async def apply(self, lease: Lease, entries: Sequence[Entry], after: int | None = None) -> None:
        """See the contract."""
        if not entries:
            return
        latest = _latest(entries)
        await self._send_later()

        def run(server: PostgresServer) -> None:
            for entry in latest:
                if entry.forced:
                    server.rows.pop(entry.id, None)
                    server.tombs.pop(entry.id, None)
            for entry in latest:
                if entry.buried:
                    self._bury(server, entry.id, entry.buried)
                if entry.message is not None:
                    self._upsert(server, entry.message)

        def check(record: TargetRecord) -> None:
            if after is not None and record.applied != after:
                raise TargetSetBackError(f"PostgreSQL is at {record.applied}, not at {after}")

        await self._holding(lease, run, max(entry.sequence for entry in entries), check)

    def _bury(self, server: PostgresServer, message_id: str, revision: int) -> None:
        stored = server.rows.get(message_id)
        if stored is not None and stored.revision < revision:
            del server.rows[message_id]
        server.tombs[message_id] = max(server.tombs.get(message_id, 0), revision)

    def _upsert(self, server: PostgresServer, message: Message) -> None:
        if server.tombs.get(message.id, 0) > message.revision:
            return
        stored = server.rows.get(message.id)
        if stored is None or self._replaces(stored, message):
            server.rows[message.id] = message

    def _replaces(self, old: Message, new: Message) -> bool:
        return old.revision < new.revision

    async def _send_later(self) -> None:
        """Take the time between preparing rows and sending them."""
        server = self._server
        self.process.check_alive()
        await asyncio.sleep(server.pause() + server.lag * server.draw.random() * server.scale)

    async def prepare(self, messages: Sequence[Message]) -> Prepared:
        """See the contract."""
        await self._send_later()
        latest: dict[str, Message] = {}
        for message in messages:
            if message.id not in latest or latest[message.id].revision < message.revision:
                latest[message.id] = message
        return Ready(list(latest.values()))

    async def copy(
        self,
        lease: Lease,
        messages: Sequence[Message] | Prepared,
        mark: BackfillMark,
        before: BackfillMark | None = None,
    ) -> BackfillMark:
        """See the contract."""
        ready = messages if isinstance(messages, Prepared) else await self.prepare(messages)
        assert isinstance(ready, Ready)

        def store(server: PostgresServer) -> None:
            _note(server, backfill=mark)
            for message in ready.rows:
                self._upsert(server, message)

        def check(record: TargetRecord) -> None:
            if before is not None and record.backfill != before:
                raise TargetSetBackError(f"PostgreSQL is at {record.backfill}, not at {before}")

        await self._holding(lease, store, check=check)
        return mark

    # ------------------------------------------------------------------ what is carried along

    async def carry(self, lease: Lease, rows: Carried, *, first: bool) -> None:
        """See the contract."""

        def store(server: PostgresServer) -> None:
            if first:
                server.quarantine.clear()
                server.files.clear()
                server.extras.clear()
            server.quarantine.update((row.source_key, row) for row in rows.quarantine)
            server.files.update((row.id, row) for row in rows.files)
            server.extras.update(((row.message_id, row.name), row) for row in rows.extras)

        await self._holding(lease, store)

    async def carried(self) -> CarriedTally:
        """See the contract."""
        return await self._read(
            lambda server: tally_of(
                server.quarantine.values(), server.files.values(), server.extras.values()
            ),
            None,
        )

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        found = await self._read(lambda server: sorted(server.quarantine.values()))
        return [row for row in found if row.number > after][:limit]

    async def quarantine_count(self) -> int:
        """See the contract."""
        return await self._read(lambda server: len(server.quarantine))

    # ------------------------------------------------------------------ the indexes

    async def indexes(self) -> list[IndexState]:
        """See the contract."""
        found = await self._read(lambda server: dict(server.indexes))
        return [IndexState(name, found[name]) for name in LATE]

    async def build_index(self, name: str, progress: Callable[[float], None]) -> None:
        """See the contract."""
        if name not in LATE:
            raise KeyError(name)
        self.process.check_alive()
        await asyncio.sleep(self._server.pause(0.3))
        progress(0.5)

        def build() -> None:
            self._server.indexes[name] = True

        await self._ask(Write([], lambda: build), None)
        progress(1.0)

    async def refresh_statistics(self) -> None:
        """See the contract."""
        await self._read(lambda _: None, None)


def _note(server: PostgresServer, **fields: object) -> None:
    """Change fields of the record, within a transaction that holds the lease."""
    assert server.record is not None
    server.record = server.record._replace(**fields)  # type: ignore[arg-type]


def _lease_end() -> float:
    return asyncio.get_running_loop().time() + LEASE_SECONDS


def _latest(entries: Iterable[Entry]) -> list[Entry]:
    """Return the last entry of each id, ``forced`` if any of its entries is."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        former = latest.get(entry.id)
        forced = entry.forced or (former is not None and former.forced)
        latest[entry.id] = entry._replace(forced=forced)
    return list(latest.values())
