"""Values for tests of migration sources and targets: leases, entries, auxiliary rows."""

from __future__ import annotations

from typing import Any

from sagastore_server.storage.auxiliary_rows import (
    AuxiliaryTallier,
    extra_values,
    quarantine_values,
)
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.files import File
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    AuxiliaryTally,
    BackfillMark,
    Entry,
    ExtraValue,
    Lease,
    MigrationTarget,
    TargetRecord,
)
from sagastore_server.storage.sessions import RecordKind
from tests.support.drafts import NOW

SOURCE = "3f0e8a52-source"
LEASE = Lease("here:64768:4711", "session-1")
SUCCESSOR = Lease(LEASE.holder, "session-2")
OTHER_LEASE = Lease("elsewhere:64768:9", "session-3")
MARK = BackfillMark(BackfillState.RUNNING, True, "m", "z", 5, 10)

QUARANTINED = [
    QuarantinedRow(7, "messages/rowid=1", "timestamp: no time", "timestamp", b'{"id": "\\u0000"}'),
    QuarantinedRow(3, "messages/rowid=9", "id: is NULL", "id", '{"id": null, "é": 1.0}'.encode()),
]
EXTRAS = [
    ExtraValue("m-1", "score", '{"value": 1.0}'),
    ExtraValue("m-1", "Score", '{"value": null}'),
    ExtraValue("M-1", "score", '{"value": "x"}'),
]


def message(
    id: str = "m-1", revision: int = 1, content: str = "The quick brown fox", **fields: Any
) -> Message:
    """Return a message with the given fields."""
    values = ("openai", "user", content, ("t",), NOW, "{}", "s-1", NOW)
    return Message(id, *values, revision, fields.pop("sequence", revision))._replace(**fields)


def saved(one: Message, *, sequence: int = 0, buried: int = 0, forced: bool = False) -> Entry:
    """Return the entry of a save."""
    return Entry(sequence or one.revision, one.id, one, buried, forced, NOW)


def deleted(id: str, revision: int, *, sequence: int = 0, forced: bool = False) -> Entry:
    """Return the entry of a deletion."""
    return Entry(sequence or revision, id, None, revision, forced, NOW)


def file_record(id: str = "f-1", revision: int = 1, **fields: Any) -> File:
    """Return a file record with the given fields."""
    values = ("notes.md", "/in/notes.md", "markdown", "text", ("t",), 17, NOW, "{}", NOW)
    return File(id, *values, revision)._replace(**fields)


def saved_file(one: File, *, sequence: int = 0, buried: int = 0, forced: bool = False) -> Entry:
    """Return the entry of a saved file record."""
    values = (sequence or one.revision, one.id, None, buried, forced, NOW, RecordKind.FILE)
    return Entry(*values, None, one)


def deleted_file(id: str, revision: int, *, sequence: int = 0, forced: bool = False) -> Entry:
    """Return the entry of a deleted file record."""
    values = (sequence or revision, id, None, revision, forced, NOW)
    return Entry(*values, RecordKind.FILE)


async def content_of(backend: StorageBackend) -> dict[str, Message]:
    """Return every message by id."""
    found: dict[str, Message] = {}
    after, more = "", True
    while more:
        page = await backend.scan_ids(after, "\U0010ffff", 500)
        found |= {one.id: one for one in page.messages}
        after, more = max(found, default=""), page.more
    return found


async def record_of(target: MigrationTarget) -> TargetRecord:
    """Return the record of a claimed target."""
    record = (await target.inspect()).record
    assert record is not None
    return record


async def finish(target: MigrationTarget, last_revision: int = 0) -> None:
    """Build the missing indexes and finish the migration."""
    for index in await target.indexes():
        await target.build_index(index.name, lambda share: None)
    await target.finish(LEASE, 5, last_revision)


def tally(rows: AuxiliaryRows) -> AuxiliaryTally:
    """Return the expected tally of rows, computed independently."""
    talliers = AuxiliaryTallier(), AuxiliaryTallier()
    talliers[0].add_all(map(quarantine_values, sorted(rows.quarantine)))
    ordered = sorted(rows.extras, key=lambda row: (row.message_id.encode(), row.name.encode()))
    talliers[1].add_all(map(extra_values, ordered))
    return AuxiliaryTally(*(one.tally() for one in talliers))
