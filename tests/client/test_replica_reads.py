"""Reads of a client from a real read replica whose replay is paused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sagastore import AsyncClient, Client, Message
from tests.support.server_process import ServerProcess
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import until_async

PATIENT = {"SAGASTORE_POSTGRES_REPLICA_MAX_LAG": "600"}
"""The paused replica stays in the rotation."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        asyncio.run(_prepare(both))
        yield both


async def _prepare(postgres: ReplicatedPostgres) -> None:
    await postgres.start()
    # Commits must not wait for the standby, whose replay is paused.
    await postgres.configure(synchronous_standby_names="")


@pytest.fixture(scope="module")
def server(
    postgres: ReplicatedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    env = PATIENT | {"SAGASTORE_POSTGRES_REPLICAS": postgres.standby.dsn}
    folder: Path = tmp_path_factory.mktemp("server")
    server = ServerProcess(folder / "unused", env=env, postgres=postgres.primary.dsn)
    yield server.start()
    server.close()


@asynccontextmanager
async def outdated(
    postgres: ReplicatedPostgres, client: AsyncClient, id: str
) -> AsyncIterator[str]:
    """Save a message as "old", pause the replay, save "new"; wait until a replica tells "old".

    Yields the position of the first save.
    """
    past = (await client.save(message(id, "old"))).position

    async def replayed() -> bool:
        found = await client.batch_get([id], consistency="any_replica")
        return bool(found.messages)

    await until_async(replayed)
    end = await postgres.value("SELECT pg_current_wal_flush_lsn()::text")

    async def caught_up() -> bool:
        sql = f"SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn"
        return bool(await postgres.value(sql, standby=True))

    await until_async(caught_up)
    await postgres.value("SELECT pg_wal_replay_pause()", standby=True)
    try:
        await client.save(message(id, "new"))

        async def shows_the_past() -> bool:
            return (await client.get(id, consistency="any_replica")).content == "old"

        await until_async(shows_the_past)
        yield past
    finally:
        await postgres.value("SELECT pg_wal_replay_resume()", standby=True)


def message(id: str, content: str) -> Message:
    return Message("openai", "user", content, id=id, session_id=id)


async def test_each_level_reads_what_it_promises(
    postgres: ReplicatedPostgres, server: ServerProcess
) -> None:
    async with (
        AsyncClient(server.address) as writer,
        AsyncClient(server.address, reads="session") as session,
        AsyncClient(server.address, reads="any_replica") as relaxed,
        outdated(postgres, writer, "levels") as past,
    ):
        position = writer.position
        assert (await writer.get("levels")).content == "new"
        assert (await relaxed.get("levels")).content == "old"
        assert (await writer.get("levels", consistency=past)).content == "old", "by the replica"
        assert (await relaxed.get("levels", consistency=position)).content == "new"
        session.observe(past)
        assert (await session.get("levels")).content == "old"
        session.observe(position)
        assert (await session.get("levels")).content == "new"
        assert [one.content async for one in session.list("levels")] == ["new"]
        assert (await session.get("levels", consistency=past)).content == "old"
        assert (await session.get("levels")).content == "new", "the session does not go back"


async def test_session_sees_its_own_writes(
    postgres: ReplicatedPostgres, server: ServerProcess
) -> None:
    def write_and_read() -> list[str]:
        with Client(server.address, reads="session") as client:
            client.save(message("own", "mine"))
            seen = [client.get("own").content]
            client.sessions.append("own", [Message("openai", "user", "mine too")])
            seen += [one.content for one in client.list("own", page_size=1)]
            client.delete("own")
            return [*seen, *client.batch_get(["own"]).missing_ids]

    async with AsyncClient(server.address) as writer, outdated(postgres, writer, "own"):
        seen = await asyncio.to_thread(write_and_read)
    assert seen == ["mine", "mine", "mine too", "own"]
