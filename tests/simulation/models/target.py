"""ModelTarget: model of PostgreSQLTarget for a deterministic simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from sagastore_server.postgresql import lease as leases
from sagastore_server.postgresql.indexes import LATE
from sagastore_server.postgresql.lease import LEASE_SECONDS, Claim
from sagastore_server.postgresql.schema import SCHEMA_VERSION
from sagastore_server.storage.errors import (
    Blocker,
    FencedError,
    PreconditionError,
    TargetSetBackError,
)
from sagastore_server.storage.model import (
    Message,
    QuarantinedRow,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    AuxiliaryTally,
    BackfillMark,
    Entry,
    IndexState,
    Lease,
    MigrationTarget,
    PreparedRows,
    TargetRecord,
    TargetState,
)
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.models.auxiliary_rows import tally_of
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.postgresql_store import ModelPostgreSQL
from tests.simulation.models.transaction import Write

T = TypeVar("T")

_RECORD = "\0record"
"""Lock of the single row of ``migration``."""


@dataclass(frozen=True)
class Ready(PreparedRows):
    """Rows to copy, each id once."""

    rows: list[Message]


class ModelTarget(ModelPostgreSQL, MigrationTarget):
    """Target of a migration on a ``PostgresServer``, used by one process.

    Overridable for planted faults: ``_holding``, ``_replaces``, ``_bury``, ``_upsert``, ``apply``,
    ``prepare``.
    """

    def on_connection_loss(self, listener: Callable[[], None]) -> None:
        """See the contract."""
        self._server.on_connection_loss(self.process, listener)

    # ------------------------------------------------------------------ the record

    async def inspect(self) -> TargetState:
        """See the contract."""
        return await self._read(
            lambda server: TargetState(server.schema, not server.has_content, self._seen())
        )

    def _seen(self) -> TargetRecord | None:
        """Return the record with the remaining time of the lease."""
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
        """Create the migration record in an empty database."""
        server = self._server
        server.tombs.clear()
        server.sessions.clear()
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
        """Run ``work`` at the commit of a transaction that holds the lease.

        ``check`` may reject the previous record. Returns the record with ``applied`` raised and the
        lease extended, but without the changes of ``work``.
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
                # The name of the last holder is kept, so that it can resume later.
                server.record = record._replace(session="")
                server.lease_until = asyncio.get_running_loop().time()

        await self._ask(Write([_RECORD], lambda: commit))

    async def set_phase(
        self, lease: Lease, phase: Phase, epoch: int, base: int, after: int | None = None
    ) -> TargetRecord:
        """See the contract."""
        record = await self._holding(
            lease, lambda server: _note(server, phase=phase, epoch=epoch), base, _at(after)
        )
        return record._replace(phase=phase, epoch=epoch)

    async def finish(
        self,
        lease: Lease,
        epoch: int,
        last_revision: int,
        after: int | None = None,
        before: BackfillMark | None = None,
    ) -> None:
        """See the contract."""

        def end(server: PostgresServer) -> None:
            server.revision = max(server.revision, last_revision)
            server.lease_until = asyncio.get_running_loop().time()
            _note(server, phase=Phase.POSTGRES_ONLY, epoch=epoch, holder="", session="")

        await self._holding(lease, end, check=_at(after, before))

    # ------------------------------------------------------------------ the rows

    async def apply(self, lease: Lease, entries: Sequence[Entry], after: int | None = None) -> None:
        """See the contract."""
        if not entries:
            return
        latest = _latest(entries, RecordKind.MESSAGE)
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
            self._apply_sessions(server, entries)
            self._apply_files(server, entries)

        await self._holding(lease, run, max(entry.sequence for entry in entries), _at(after))

    def _apply_sessions(self, server: PostgresServer, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind is RecordKind.SESSION and entry.forced:
                server.sessions.pop(entry.id, None)
        for entry in entries:
            session = entry.session
            if session is not None:
                stored = server.sessions.get(session.session_id)
                if stored is None or stored.revision < session.revision:
                    server.sessions[session.session_id] = session

    def _apply_files(self, server: PostgresServer, entries: Sequence[Entry]) -> None:
        given = _latest(entries, RecordKind.FILE)
        for entry in given:
            if entry.forced:
                server.files.pop(entry.id, None)
                server.file_tombs.pop(entry.id, None)
        for entry in given:
            record = server.files.get(entry.id)
            if entry.buried:
                if record is not None and record.revision < entry.buried:
                    del server.files[entry.id]
                    record = None
                tomb = server.file_tombs.get(entry.id, 0)
                server.file_tombs[entry.id] = max(tomb, entry.buried)
            if entry.file is None or server.file_tombs.get(entry.id, 0) > entry.file.revision:
                continue
            if record is None or record.revision < entry.file.revision:
                server.files[entry.id] = entry.file

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
        """Let time pass between preparing rows and sending them."""
        server = self._server
        self.process.check_alive()
        await asyncio.sleep(server.pause() + server.lag * server.draw.random() * server.scale)

    async def prepare(self, messages: Sequence[Message]) -> PreparedRows:
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
        messages: Sequence[Message] | PreparedRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        least: int = 0,
    ) -> BackfillMark:
        """See the contract."""
        ready = messages if isinstance(messages, PreparedRows) else await self.prepare(messages)
        assert isinstance(ready, Ready)

        def store(server: PostgresServer) -> None:
            _note(server, backfill=mark)
            for message in ready.rows:
                self._upsert(server, message)

        await self._holding(lease, store, check=_at(None, before, least))
        return mark

    # ------------------------------------------------------------------ auxiliary rows

    async def carry(
        self,
        lease: Lease,
        rows: AuxiliaryRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        *,
        first: bool,
    ) -> None:
        """See the contract."""

        def store(server: PostgresServer) -> None:
            _note(server, backfill=mark)
            if first:
                server.quarantine.clear()
                server.extras.clear()
            server.quarantine.update((row.source_key, row) for row in rows.quarantine)
            server.extras.update(((row.message_id, row.name), row) for row in rows.extras)

        await self._holding(lease, store, check=_at(None, before))

    async def carried(self) -> AuxiliaryTally:
        """See the contract."""
        return await self._read(
            lambda server: tally_of(server.quarantine.values(), server.extras.values()),
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


def _at(
    after: int | None, before: BackfillMark | None = None, least: int = 0
) -> Callable[[TargetRecord], None]:
    """Return a check of the target's position and backfill mark; None: any."""

    def check(record: TargetRecord) -> None:
        if after is not None and record.applied != after:
            raise TargetSetBackError(f"PostgreSQL is at {record.applied}, not at {after}")
        if before is not None and record.backfill != before:
            raise TargetSetBackError(f"PostgreSQL is at {record.backfill}, not at {before}")
        if record.applied < least:
            raise TargetSetBackError(f"PostgreSQL is at {record.applied}, not at {least}")

    return check


def _note(server: PostgresServer, **fields: object) -> None:
    """Change fields of the record within a transaction that holds the lease."""
    assert server.record is not None
    server.record = server.record._replace(**fields)  # type: ignore[arg-type]


def _lease_end() -> float:
    return asyncio.get_running_loop().time() + LEASE_SECONDS


def _latest(entries: Iterable[Entry], kind: RecordKind) -> list[Entry]:
    """Return the last entry of each record of a kind, ``forced`` if any of its entries is."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind is not kind:
            continue
        former = latest.get(entry.id)
        forced = entry.forced or (former is not None and former.forced)
        latest[entry.id] = entry._replace(forced=forced)
    return list(latest.values())
