"""The server is killed while PostgreSQL still commits the last step, which takes it long.

A commit may wait: for a disk, or for a standby. The next server must not take "not yet"
for "never": writes that went to SQLite after PostgreSQL has taken over would be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import asyncpg

from sagastore import AsyncClient, Message, Phase, RetryPolicy
from tests.migration.conftest import Place
from tests.support.crashing_server import CrashingServer

SENT = "4-read-postgres-completing/postgres COMMIT of finish/sent#1"

# Commits of the last step wait for a lock that the test holds.
SLOW_COMMIT = """
CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    WHILE NOT pg_try_advisory_xact_lock_shared(4711) LOOP PERFORM pg_sleep(0.01); END LOOP;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER wait_for_test AFTER UPDATE ON migration
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.phase = 5) EXECUTE FUNCTION wait_for_test();
SELECT pg_advisory_lock(4711);
"""
RELEASE = "SELECT pg_advisory_unlock(4711)"
WAITING = """
SELECT count(*) FROM pg_locks
WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'sagastore')
"""


WITHIN = 90
"""Seconds for all of it. The usual are five."""

PATIENT = RetryPolicy(max_attempts=10_000, max_backoff=0.2)


async def go_to(client: AsyncClient, phase: Phase) -> None:
    """Change to ``phase``, as soon as nothing stands in the way."""
    async with contextlib.aclosing(client.migration.watch()) as watching:
        async for status in watching:
            if not status.blockers_to_next:
                break
    await client.migration.change_phase(phase)


async def until_one_waits(watching: asyncpg.Connection, server: CrashingServer) -> None:
    """Wait until the server that starts waits for the commit, or serves without doing so."""
    while not await watching.fetchval(WAITING):
        if any(event.get("event") == "serving" for event in server.events):
            return
        await asyncio.sleep(0.01)


async def test_cutover_in_doubt_is_resolved_by_next_server(place: Place, tmp_path: Path) -> None:
    patience = {"SAGASTORE_POSTGRES_STATEMENT_TIMEOUT": "100"}
    server = CrashingServer(place.path, place.dsn, tmp_path / "trace", (SENT,), **patience)
    commits = await asyncpg.connect(place.dsn)
    watching = await asyncpg.connect(place.dsn)
    try:
        async with asyncio.timeout(WITHIN):
            await asyncio.to_thread(server.start)
            async with AsyncClient(server.address, retry=PATIENT, timeout=60) as client:
                await crash_in_the_last_step(server, client, commits)
                await asyncio.to_thread(server.spawn)
                await until_one_waits(watching, server)
                await commits.execute(RELEASE)
                await asyncio.to_thread(server.wait_for_event, "serving")
                assert (await client.migration.get()).phase is Phase.POSTGRES_ONLY
                await client.save(Message("openai", "user", "after the last step", id="after"))
            stored = await watching.fetch("SELECT id FROM messages ORDER BY id")
            assert [row[0] for row in stored] == ["after", "before"]
    except BaseException as exc:
        exc.add_note("the log of the server:\n" + "\n".join(server.stderr))
        raise
    finally:
        server.close()
        await commits.close()
        await watching.close()


async def crash_in_the_last_step(
    server: CrashingServer, client: AsyncClient, commits: asyncpg.Connection
) -> None:
    """Advance to the last commit, which is in progress when the server is killed."""
    for phase in (Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES):
        await go_to(client, phase)
    await client.save(Message("openai", "user", "before the last step", id="before"))
    await commits.execute(SLOW_COMMIT)
    change = asyncio.create_task(go_to(client, Phase.POSTGRES_ONLY))
    await asyncio.to_thread(server.wait)
    assert server.killed_itself
    change.cancel()
    await asyncio.gather(change, return_exceptions=True)
