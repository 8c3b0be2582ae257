"""Schema step 5: files of earlier versions become records."""

from __future__ import annotations

import json

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.schema import COMPATIBLE_FROM, SCHEMA_VERSION, STEPS
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.files import File, FileScan, NewFile
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import Lease
from tests.support.backends import opened
from tests.support.postgres import execute

LEASE = Lease("here:1:1", "session-1")
DAY = 1_743_465_600_000_000
"""2025-04-01T00:00:00Z in microseconds."""

FILES = """
INSERT INTO files VALUES
    ('good', 'a', 'b', 'c', NULL, '["x"]', NULL, '2025-04-01', NULL, NULL, '{"more": 1.0}'),
    ('full', 'a', 'b', 'c', 'text', '', 7, '2025-04-02T00:00:00', '{"k": 1}', '2025-04-01', '{}'),
    ('bad', 'a', 'b', 'c', NULL, '{}', -1, 'soon', NULL, NULL, '{}');
"""


async def _of_schema_4(dsn: str, phase: Phase) -> None:
    """Create a database as a server with schema 4 leaves it, with three files."""
    versions = ", ".join(f"({number}, {COMPATIBLE_FROM[number]})" for number in range(1, 5))
    await execute(
        dsn,
        "".join(step.sql for step in STEPS if step.number <= 4)
        + f"INSERT INTO sagastore_schema (version, compatible_from) VALUES {versions};"
        "INSERT INTO store_state VALUES ('analysis', 'other'), ('store_id', 'the-id');"
        "INSERT INTO migration (source, phase, epoch, holder, session, lease_until, backfill_state,"
        f" backfill_carried) VALUES ('s', {phase.value}, 4, 'here:1:1', '', now(), 'done', true);"
        + FILES,
    )


def _options(dsn: str) -> PostgreSQLOptions:
    return PostgreSQLOptions(dsn, pool_min=1, pool_max=4)


async def test_files_of_a_finished_migration_become_records(dsn: str) -> None:
    await _of_schema_4(dsn, Phase.POSTGRES_ONLY)
    for _ in range(2):
        async with opened(lambda: PostgreSQLStorage(_options(dsn))) as backend:
            page = await backend.list_files(FileScan(10))
            names = ("a", "b", "c")
            plain = [one._replace(revision=0) for one in page.files]
            assert plain == [
                File("full", *names, "text", (), 7, DAY + 86_400_000_000, '{"k": 1}', DAY, 0),
                File("good", *names, "", ("x",), 0, DAY, "{}", None, 0, '{"more": 1.0}'),
            ]
            (row,) = await backend.quarantine(0, 10)
            assert row.source_key == "files/id=bad"
            assert row.field == "tags"
            assert row.reason.startswith(
                "tags: is a JSON object, not a JSON list; file_size: is -1"
            )
            assert json.loads(row.row)["uploaded_at"] == "soon"
    async with opened(lambda: PostgreSQLStorage(_options(dsn))) as backend:
        revision = max(one.revision for one in page.files)
        draft = NewFile("good", *names, "new", (), 0, None, "{}")
        assert (await backend.save_file(draft)).revision > revision
        assert (await backend.get_file("good")).extra == '{"more": 1.0}'


async def test_target_of_a_migration_gets_its_files_again(dsn: str) -> None:
    await _of_schema_4(dsn, Phase.READ_POSTGRES)
    target = PostgreSQLTarget(_options(dsn))
    await target.open()
    try:
        assert not (await target.inspect()).empty
        record = await target.claim(LEASE, "s", Phase.READ_POSTGRES, 4)
        assert (record.backfill.state, record.backfill.carried) == (BackfillState.RUNNING, False)
        assert await target.count_files() == 0
        assert await target.quarantine_count() == 0
        assert (await target.inspect()).schema_version == SCHEMA_VERSION
    finally:
        await target.close()
