"""Models that emit an event for each durable step and each snapshot of a read."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from sagastore_server.storage.changes import Changes, Revisions
from sagastore_server.storage.model import Message, Page
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    BackfillMark,
    Entry,
    Lease,
    MigrationState,
    PreparedRows,
    TargetRecord,
)
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.models.reads import Rows
from tests.simulation.models.source import ModelSource
from tests.simulation.models.source_disk import JournalRow, SourceDisk
from tests.simulation.models.target import ModelTarget, Ready

T = TypeVar("T")

CALL: contextvars.ContextVar[int] = contextvars.ContextVar("call", default=0)
"""Number of the client's call that the running task serves; 0: none."""

_Kind = tuple[str, tuple[str, ...]]
_RENEW: _Kind = ("renew", ())
_KIND: contextvars.ContextVar[_Kind] = contextvars.ContextVar("kind", default=_RENEW)
"""Call of the target that the running task executes, and the ids in it."""


class Observer(Protocol):
    """Receives events."""

    def __call__(self, actor: str, kind: str, **facts: Any) -> None:
        """Receive one event."""


class ObservedDisk(SourceDisk):
    """SourceDisk that emits its transactions."""

    observe: Observer | None = None

    def _emit(self, kind: str, **facts: Any) -> None:
        if self.observe is not None:
            self.observe(self.holder, kind, **facts)

    def store(self, changes: Changes, revisions: Revisions) -> list[JournalRow]:
        """See ``SourceDisk``."""
        rows = super().store(changes, revisions)
        changed = [
            (row.id, row.sequence, changes.after[row.id] is None)
            for row in rows
            if row.kind is RecordKind.MESSAGE
        ]
        if changed:
            self._emit(
                "source commit",
                changes=changed,
                revision=self.revision,
                journalled=self.state.phase.journals,
            )
        files = [
            (row.id, row.sequence, changes.files.after[row.id] is None)
            for row in rows
            if row.kind is RecordKind.FILE
        ]
        if files:
            self._emit("source commit of files", changes=files, revision=self.revision)
        return rows

    def change_state(self, state: MigrationState, rejournal_after: int | None, now: int) -> int:
        """See ``SourceDisk``."""
        revision = super().change_state(state, rejournal_after, now)
        self._emit(
            "source state",
            phase=state.phase.value,
            epoch=state.epoch,
            base=state.base,
            completing=state.completing,
            rejournal_after=rejournal_after,
            revision=revision,
            journal=len(self.journal),
        )
        return revision

    def force(self, ids: Sequence[str], kind: RecordKind, now: int) -> int:
        """See ``SourceDisk``."""
        revision = super().force(ids, kind, now)
        self._emit("requeue", ids=list(ids), of=kind.name, revision=revision)
        return revision

    def prune_some(self, upto: int) -> bool:
        """See ``SourceDisk``."""
        before = len(self.journal)
        more = super().prune_some(upto)
        if len(self.journal) != before:
            self._emit("prune", upto=self.pruned, rows=before - len(self.journal))
        return more


class ObservedSource(ModelSource):
    """ModelSource that emits its commits and snapshots."""

    def __init__(
        self,
        disk: SourceDisk,
        process: Process,
        now: Callable[[], int],
        observe: Observer | None,
    ) -> None:
        """As ``ModelSource``."""
        super().__init__(disk, process, now)
        self._observe = observe

    def _grow(self, revision: int) -> None:
        if self._observe is not None and revision > self.committed:
            self._observe(self.process.name, "told", committed=revision)
        super()._grow(revision)

    async def _look(self, look: Callable[[Rows], T]) -> T:
        def seen(rows: Rows) -> T:
            found = look(rows)
            if self._observe is not None and CALL.get():
                emit_snapshot(self._observe, self.process, "sqlite", found)
            return found

        return await super()._look(seen)


class ObservedTarget(ModelTarget):
    """ModelTarget that emits its transactions, at their commit, and its snapshots."""

    def __init__(
        self,
        server: PostgresServer,
        process: Process,
        now: Callable[[], int],
        observe: Observer | None,
    ) -> None:
        """As ``ModelTarget``."""
        super().__init__(server, process, now)
        self._observe = observe

    async def _look(self, look: Callable[[Rows], T]) -> T:
        call = CALL.get()

        def seen(rows: Rows) -> T:
            found = look(rows)
            if self._observe is not None and call:
                emit_snapshot(self._observe, self.process, "postgresql", found, call)
            return found

        return await super()._look(seen)

    async def _holding(
        self,
        lease: Lease,
        work: Callable[[PostgresServer], None],
        applied: int = 0,
        check: Callable[[TargetRecord], None] | None = None,
    ) -> TargetRecord:
        kind, ids = _KIND.get()

        def observed_work(server: PostgresServer) -> None:
            work(server)
            self._emit(kind, ids)

        return await super()._holding(lease, observed_work, applied, check)

    def _emit(self, kind: str, ids: Iterable[str] = ()) -> None:
        server, record = self._server, self._server.record
        if self._observe is None or record is None:
            return
        rows = {
            key: (server.rows[key].revision if key in server.rows else 0, server.tombs.get(key, 0))
            for key in ids
        }
        self._observe(
            "postgres",
            f"target {kind}",
            server=self.process.name,
            applied=record.applied,
            phase=record.phase.value,
            epoch=record.epoch,
            holder=record.holder,
            session=record.session,
            mark=(record.backfill.state.value, record.backfill.carried, record.backfill.cursor),
            rows=rows,
        )

    async def claim(
        self, lease: Lease, source: str, phase: Phase, epoch: int, *, steal: bool = False
    ) -> TargetRecord:
        """See the contract."""
        record = await super().claim(lease, source, phase, epoch, steal=steal)
        self._emit("claim")
        return record

    async def set_phase(
        self, lease: Lease, phase: Phase, epoch: int, base: int, after: int | None = None
    ) -> TargetRecord:
        """See the contract."""
        return await self._as("set_phase", (), super().set_phase(lease, phase, epoch, base, after))

    async def finish(
        self,
        lease: Lease,
        epoch: int,
        last_revision: int,
        after: int | None = None,
        before: BackfillMark | None = None,
    ) -> None:
        """See the contract."""
        finishing = super().finish(lease, epoch, last_revision, after, before)
        await self._as("finish", (), finishing)

    async def apply(self, lease: Lease, entries: Sequence[Entry], after: int | None = None) -> None:
        """See the contract."""
        messages = (entry for entry in entries if entry.kind is RecordKind.MESSAGE)
        ids = tuple(dict.fromkeys(entry.id for entry in messages))
        await self._as("apply", ids, super().apply(lease, entries, after))

    async def copy(
        self,
        lease: Lease,
        messages: Sequence[Message] | PreparedRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        least: int = 0,
    ) -> BackfillMark:
        """See the contract."""
        rows = messages.rows if isinstance(messages, Ready) else messages
        assert not isinstance(rows, PreparedRows)
        ids = tuple(row.id for row in rows)
        return await self._as("copy", ids, super().copy(lease, messages, mark, before, least))

    async def _as(self, kind: str, ids: tuple[str, ...], work: Awaitable[T]) -> T:
        """Attach the name of a call to its transaction."""
        _KIND.set((kind, ids))
        try:
            return await work
        finally:
            # Not reset by a token, because a dead coroutine may be closed from another context.
            _KIND.set(_RENEW)


def emit_snapshot(
    observe: Observer, process: Process, store: str, found: object, call: int = 0
) -> None:
    """Emit the snapshot of a read, with the revisions of the messages in it."""
    observe(process.name, "snapshot", call=call or CALL.get(), store=store, saw=revisions(found))


def revisions(found: object) -> dict[str, int]:
    """Return the ids and revisions in the answer of a read."""
    match found:
        case Message():
            return {found.id: found.revision}
        case dict():
            return {key: message.revision for key, message in found.items()}
        case Page():
            return {message.id: message.revision for message in found.messages}
    return {}
