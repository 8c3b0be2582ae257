"""Hooks on the file and on PostgreSQL, which outlive the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagastore_server.storage.changes import Changes, Revisions
from sagastore_server.storage.replication import BackfillMark, MigrationState
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.models.source_disk import SourceDisk
from tests.simulation.tracing.trace import Trace, hook, mark_of


def hook_disk(trace: Trace, disk: SourceDisk) -> None:
    """Record the transactions of the source, and the batches read from its journal."""
    store, change = disk.store, disk.change_state

    def stored(changes: Changes, revisions: Revisions) -> Any:
        rows = store(changes, revisions)
        for call, deletes, number in trace.written.pop(id(changes), []):
            kind = "commit" if number else "unchanged"
            message = disk.messages.get(call.id)
            if number:
                trace.note(kind, call=call.name, id=call.id, revision=number, delete=deletes)
            elif message is not None:
                trace.note(kind, call=call.name, id=call.id, revision=message.revision)
        return rows

    def changed(state: MigrationState, rejournal_after: int | None, now: int) -> int:
        revision = change(state, rejournal_after, now)
        again = rejournal_after is not None and state.phase.journals
        trace.note(
            "state",
            phase=state.phase.value,
            completing=state.completing,
            base=state.base,
            rejournalled=again,
        )
        return revision

    hook(disk, store=stored, change_state=changed)
    _hook_journal(trace, disk)


def _hook_journal(trace: Trace, disk: SourceDisk) -> None:
    force, prune, entries = disk.force, disk.prune_some, disk.entries

    def forced(ids: Sequence[str], kind: RecordKind, now: int) -> int:
        last = force(ids, kind, now)
        for place, key in enumerate(ids if kind is RecordKind.MESSAGE else ()):
            trace.note("requeue", id=key, revision=last - len(ids) + place + 1)
        return last

    def pruned(upto: int) -> bool:
        before = list(disk.journal)
        more = prune(upto)
        removed = len(before) - len(disk.journal)
        if removed:
            messages = any(row.kind is RecordKind.MESSAGE for row in before[:removed])
            trace.note("prune", upto=before[removed - 1].sequence, messages=messages)
        return more

    def read(after: int, limit: int) -> Any:
        found = entries(after, limit)
        if found:
            messages = any(entry.kind is RecordKind.MESSAGE for entry in found)
            trace.note("journal", after=after, upto=found[-1].sequence, messages=messages)
        return found

    hook(disk, force=forced, prune_some=pruned, entries=read)


def hook_postgres(trace: Trace) -> None:
    """Record when PostgreSQL stops, starts and is set back."""
    postgres = trace.world.postgres
    crash, start, restore = postgres.crash, postgres.start, postgres.restore

    def crashed() -> None:
        if postgres.up:
            trace.note("down")
        crash()

    def started() -> None:
        if not postgres.up:
            trace.note("up")
        start()

    def restored(saved: Any, *, noticed: bool = False) -> None:
        restore(saved, noticed=noticed)
        record = postgres.record
        trace.note(
            "set_back",
            row={key: message.revision for key, message in postgres.rows.items()},
            tomb=dict(postgres.tombs),
            phase=record.phase.value if record else 1,
            session=trace.sessions.get(record.session, 0) if record else 0,
            applied=record.applied if record else 0,
            mark=mark_of(record.backfill if record else BackfillMark()),
        )

    hook(postgres, crash=crashed, start=started, restore=restored)
