"""Upgrade of a store of schema version 2: the present revisions become the sequences."""

from __future__ import annotations

from sagastore_server.postgresql.schema import SCHEMA_VERSION
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.query import Scan
from tests.postgresql.targets import fetched, opened_plain
from tests.support.drafts import draft, found
from tests.support.old_stores import OldRow, make_postgresql
from tests.support.postgres import fresh_schema
from tests.support.reanalysis import analysed

ROWS = [OldRow(0, "m", 3), OldRow(0, "z", 5), OldRow(0, "a", 11)]
LAST_REVISION = 12

INDEXES = """SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes
    WHERE schemaname = current_schema() ORDER BY 1"""


async def _listed(store: StorageBackend) -> list[tuple[str, int]]:
    page = await store.list_session("s-1", Scan(False, 100))
    return [(message.id, message.sequence) for message in page.messages]


async def test_revisions_become_sequences_and_new_messages_follow(dsn: str) -> None:
    await make_postgresql(dsn, ROWS, LAST_REVISION)
    old = [(row.id, row.revision) for row in ROWS]
    async with opened_plain(dsn) as store:
        assert (await store.health()).schema_version == SCHEMA_VERSION
        assert await _listed(store) == old
        assert await store.last_sequence() == 11
        assert (await store.save(draft("m", "a new fox"))).revision > LAST_REVISION
        await store.save(draft("y", "fox"))
        await store.bulk_save([draft("x", "fox"), draft("c", "fox")], OnConflict.REPLACE)
        listed = await _listed(store)
        assert listed[:3] == old
        assert [key for key, _ in listed[3:]] == ["y", "x", "c"]
        sequences = [sequence for _, sequence in listed]
        assert sequences == sorted(set(sequences))
        assert sequences[3] > LAST_REVISION
        await analysed(store)
        assert await found(store, "fox") == ["m", "z", "a", "y", "x", "c"]
    async with opened_plain(dsn) as store:
        assert await _listed(store) == listed


async def test_upgraded_store_has_the_indexes_of_a_new_one(dsn: str) -> None:
    await make_postgresql(dsn, ROWS, LAST_REVISION)
    async with fresh_schema() as other, opened_plain(dsn), opened_plain(other):
        assert await fetched(dsn, INDEXES) == await fetched(other, INDEXES)


async def test_first_revision_and_sequence_are_positive(dsn: str) -> None:
    async with opened_plain(dsn) as store:
        assert (await store.save(draft("m"))).revision > 0
        await store.bulk_save([draft("b"), draft("a")], OnConflict.REPLACE)
        sequences = [sequence for _, sequence in await _listed(store)]
        assert 0 < sequences[0] < sequences[1] < sequences[2]
