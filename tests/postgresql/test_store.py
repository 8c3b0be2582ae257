"""PostgreSQL store: types, sizes, write groups, settings, schema."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from pathlib import Path

import asyncpg
import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.rows import search_columns
from sagastore_server.postgresql.schema import SCHEMA_VERSION
from sagastore_server.postgresql.writer import LARGE_ROWS
from sagastore_server.search.analysis import ANALYSIS_VERSION, analyze
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import CannotOpenError, StorageError
from sagastore_server.storage.model import NewMessage, OnConflict
from sagastore_server.storage.query import Criteria, Scan
from sagastore_server.storage.validation import MAX_CONTENT, MAX_TIMESTAMP, MIN_TIMESTAMP
from tests.postgresql.targets import until_one_waits
from tests.support.backends import opened
from tests.support.drafts import NOW, draft, found
from tests.support.postgres import execute, server_dsn
from tests.support.reanalysis import analysed, set_back_postgresql_analysis

MAX_TSVECTOR = (1 << 20) - 1
"""Bytes of lexemes that PostgreSQL takes (MAXSTRPOS)."""


def backend_on(dsn: str, **options: object) -> PostgreSQLStorage:
    return PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1)._replace(**options))  # type: ignore[arg-type]


def _dense(pieces: list[str]) -> str:
    """Return the longest content, made of distinct words."""
    text = " ".join(pieces)
    return text[:MAX_CONTENT]


# Texts whose distinct terms take as many bytes as any: letters that fold to several, long
# letters, single characters of scripts without spaces.
_TIBETAN = "\u0f77\u0f79"
DENSE = {
    "ascii": _dense([f"{number:x}" for number in range(20_000)]),
    "ascii words": _dense(["".join(w) + "ing" for w in itertools.product("bcdfgklmnp", repeat=5)]),
    "long words": _dense([f"{number:03}" + "\U00010400" * 97 for number in range(1000)]),
    "expanding": _dense(
        ["".join(w) * 2 for w in itertools.islice(itertools.product(_TIBETAN, repeat=16), 4000)]
    ),
    "ligatures": "".join(
        "\ufdfa" + "".join(letters)
        for letters in itertools.islice(itertools.product(_TIBETAN, repeat=13), 7000)
    ),
    "singles": "".join(chr(code) for code in range(0x4E00, 0x4E00 + 20_000)),
    "one word": "a " * 50_000,
}


@pytest.mark.parametrize("kind", DENSE)
async def test_largest_content_fits_index(dsn: str, kind: str) -> None:
    text = DENSE[kind]
    assert len(text) <= MAX_CONTENT
    assert len(search_columns(text)[1]) < MAX_TSVECTOR
    async with opened(lambda: backend_on(dsn)) as backend:
        await backend.save(draft("m", text))
        assert (await backend.get("m")).content == text
        stems = analyze(text).stems
        assert await found(backend, f'"{stems[-1]}"') == ["m"]


@pytest.mark.parametrize("moment", [MIN_TIMESTAMP, -1, 0, NOW + 123_457, MAX_TIMESTAMP])
async def test_timestamps_are_exact(dsn: str, moment: int) -> None:
    async with opened(lambda: backend_on(dsn)) as backend:
        await backend.save(draft("m", timestamp=moment))
        assert (await backend.get("m")).timestamp == moment
        page = await backend.search(Criteria(start=moment), Scan(True, 10))
        assert [message.timestamp for message in page.messages] == [moment]
        assert not (await backend.search(Criteria(end=moment), Scan(True, 10))).messages


async def test_bad_row_does_not_affect_group(dsn: str) -> None:
    """Validation, which rejects bad rows, is bypassed here."""
    async with opened(lambda: backend_on(dsn, writers=1)) as backend:
        bad = draft("bad", "zero \0 byte")
        drafts = [draft(f"m-{number}") for number in range(20)]
        results = await asyncio.gather(
            *(backend.save(one) for one in [*drafts[:10], bad, *drafts[10:]]),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, BaseException)]
        assert len(refused) == 1
        assert isinstance(refused[0], StorageError)
        assert len(await backend.batch_get([one.id for one in drafts])) == 20


@pytest.mark.parametrize("writers", [1, 2])
async def test_queued_writes_share_transaction(dsn: str, writers: int) -> None:
    async with opened(lambda: backend_on(dsn, writers=writers)) as backend:
        results = await asyncio.gather(*(backend.save(draft(f"m-{n}")) for n in range(200)))
        assert len({result.revision for result in results}) == 200
        rows = await backend._pool.rows("SELECT count(DISTINCT xmin::text) FROM messages")  # type: ignore[attr-defined]
        assert rows[0][0] <= 3


@pytest.mark.parametrize("rows", [1, LARGE_ROWS])
async def test_lock_wait_does_not_block_other_groups(dsn: str, rows: int) -> None:
    async with opened(lambda: backend_on(dsn, writers=2)) as backend:
        await backend.save(draft("locked"))
        drafts = [draft("locked", "new"), *(draft(f"b-{number}") for number in range(1, rows))]
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction():
                await connection.execute("SELECT FROM messages WHERE id = 'locked' FOR UPDATE")
                held_up = asyncio.create_task(backend.bulk_save(drafts, OnConflict.REPLACE))
                await until_one_waits(dsn)
                for number in range(3):
                    # Of another session: writes of one session wait for each other.
                    await backend.save(draft(f"m-{number}", session_id=f"other-{number}"))
                assert not held_up.done()
            assert (await held_up).saved == rows
        finally:
            await connection.close()


async def test_synchronous_commit_cannot_be_off(dsn: str) -> None:
    settings = f"{dsn}&synchronous_commit=off"
    async with opened(lambda: backend_on(settings)) as backend:
        async with backend._pool.connection() as connection:  # type: ignore[attr-defined]
            assert await connection.fetchval("SHOW synchronous_commit") == "off"
        async with (
            backend._pool.connection() as connection,  # type: ignore[attr-defined]
            backend._pool.transaction(connection, _begin()),  # type: ignore[attr-defined]
        ):
            assert await connection.fetchval("SHOW synchronous_commit") == "on"


def _begin() -> str:
    from sagastore_server.postgresql.queries import QUERIES  # noqa: PLC0415

    return QUERIES["begin"]


async def test_store_works_without_prepared_statements(dsn: str) -> None:
    """As behind PgBouncer in transaction mode: no state outlives a transaction."""
    async with opened(lambda: backend_on(dsn, statement_cache=0)) as backend:
        await _use(backend)
        rows = await backend._pool.rows("SELECT count(*) FROM pg_prepared_statements")  # type: ignore[attr-defined]
        assert rows[0][0] == 0


async def _use(backend: StorageBackend) -> None:
    await backend.bulk_save([draft(f"m-{n}", f"word {n}") for n in range(300)], OnConflict.REPLACE)
    await backend.save(draft("m-1", "other word"))
    await backend.delete("m-2")
    assert len(await found(backend, '"word" -other')) == 298
    assert len((await backend.list_session("s-1", Scan(True, 500))).messages) == 299
    assert (await backend.health()).messages == 299


async def test_newer_compatible_schema_is_used(dsn: str) -> None:
    async with opened(lambda: backend_on(dsn)) as backend:
        await backend.save(draft())
    await execute(dsn, "INSERT INTO sagastore_schema VALUES (99, 1)")
    async with opened(lambda: backend_on(dsn)) as backend:
        assert (await backend.get("m-1")).content == draft().content
        assert (await backend.health()).schema_version == 99


async def test_newer_incompatible_schema_is_refused(dsn: str) -> None:
    async with opened(lambda: backend_on(dsn)):
        pass
    await execute(dsn, "INSERT INTO sagastore_schema VALUES (99, 99)")
    with pytest.raises(CannotOpenError, match=r"version 99.* run a newer server"):
        await backend_on(dsn).open()


async def test_foreign_tables_are_unchanged(dsn: str) -> None:
    await execute(dsn, "CREATE TABLE messages (id INTEGER)")
    with pytest.raises(CannotOpenError, match=r"did not create \(messages\)"):
        await backend_on(dsn).open()
    await execute(dsn, "INSERT INTO messages VALUES (1)")
    async with opened(lambda: _Nothing(dsn)) as nothing:
        assert nothing is not None


class _Nothing(PostgreSQLStorage):
    """Checks that the store leaves no objects behind."""

    def __init__(self, dsn: str) -> None:
        super().__init__(PostgreSQLOptions(dsn, pool_min=1))

    async def open(self) -> None:
        await self._pool.open()
        assert await self._pool.value("SELECT to_regclass('sagastore_schema')::text") is None


async def test_terms_of_other_analysis_are_rebuilt(dsn: str) -> None:
    async with opened(lambda: backend_on(dsn)) as backend:
        await backend.bulk_save([draft(f"m-{n}", f"word{n}") for n in range(1200)], OnConflict.SKIP)
    await set_back_postgresql_analysis(dsn, "older")
    async with opened(lambda: backend_on(dsn)) as backend:
        await analysed(backend)
        assert await found(backend, "word1199") == ["m-1199"]
        query = "SELECT value FROM store_state WHERE name = 'analysis'"
        assert await backend._pool.value(query) == str(ANALYSIS_VERSION)  # type: ignore[attr-defined]


async def test_schema_version_is_current(dsn: str) -> None:
    async with opened(lambda: backend_on(dsn)) as backend:
        assert (await backend.health()).schema_version == SCHEMA_VERSION


async def test_errors_contain_no_message_content(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(lambda: backend_on(dsn)) as backend:
        secret = NewMessage("m", "p", "r", "a very private text", (), 0, "{not json", None)
        with pytest.raises(StorageError) as caught:
            await backend.save(secret)
        logging.getLogger("test").error("refused", exc_info=caught.value)
    assert "private" not in caplog.text
    assert "INSERT" not in str(caught.value)


async def test_least_privileges_are_sufficient(dsn: str) -> None:
    """The owner creates the schema; the server's role can use but not change it."""
    script = Path(__file__).parents[2] / "docs" / "sql" / "least_privileges.sql"
    name = f"least_{os.getpid()}"
    await execute(dsn, script.read_text(encoding="utf-8").replace("sagastore", name))
    base = server_dsn()
    try:
        async with opened(lambda: backend_on(base.replace("postgres@", f"{name}_owner@"))):
            pass
        async with opened(
            lambda: backend_on(base.replace("postgres@", f"{name}_server@"))
        ) as backend:
            await _use(backend)
            with pytest.raises(StorageError):
                await backend._pool.rows("DROP TABLE messages")  # type: ignore[attr-defined]
    finally:
        await execute(base, f"DROP SCHEMA {name} CASCADE")
        for role in ("owner", "server"):
            await execute(base, f"DROP OWNED BY {name}_{role}")
            await execute(base, f"DROP ROLE {name}_{role}")


async def test_missing_row_of_a_session_is_counted_anew(dsn: str) -> None:
    async with opened(lambda: backend_on(dsn)) as backend:
        await backend.append("s-1", [draft(name, f"text {name}") for name in "abc"])
        before = await backend.get_session("s-1")
        await execute(dsn, "DELETE FROM sessions")
        await backend.delete("a")
        after = await backend.get_session("s-1")
        assert (after.message_count, after.first_message) == (2, "text b")
        assert after.providers == (("anthropic", 2),)
        assert (after.first_time, after.last_sequence) == (
            before.first_time,
            before.last_sequence,
        )
