"""Concurrent saves and gets of one client on a real server: no update is lost or mixed up."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

from sagastore import AbortedError, AlreadyExistsError, AsyncClient, Client, Message, NotFoundError
from tests.support.messages import new_id
from tests.support.server_process import ServerProcess

TASKS = 24
TURNS = 15


def counter(id: str, value: int) -> Message:
    return Message(id=id, provider="p", role="user", content="n", metadata={"n": value})


async def _count(client: AsyncClient, id: str) -> int:
    """Increase a counter again and again, and return how often that was acknowledged."""
    done = 0
    for _ in range(TURNS):
        try:
            found = await client.get(id)
            revision, value = found.revision, found.metadata["n"]
        except NotFoundError:
            revision, value = 0, 0
        try:
            await client.save(counter(id, value + 1), if_revision=revision)
            done += 1
        except (AbortedError, AlreadyExistsError):
            pass
    return done


async def test_guarded_saves_of_many_tasks_lose_no_update(shared_server: ServerProcess) -> None:
    ids = [new_id() for _ in range(4)]
    async with AsyncClient(shared_server.address) as client:
        done = await asyncio.gather(*(_count(client, ids[n % 4]) for n in range(TASKS)))
        for number, id in enumerate(ids):
            assert (await client.get(id)).metadata["n"] == sum(done[number::4])


async def test_every_task_reads_what_it_has_saved(shared_server: ServerProcess) -> None:
    async def one(client: AsyncClient, number: int) -> None:
        for turn in range(TURNS):
            sent = Message(provider="p", role="user", content=f"{number}/{turn}")
            result = await client.save(sent)
            assert result.created
            assert (await client.get(result.id)).content == sent.content

    async with AsyncClient(shared_server.address) as client:
        await asyncio.gather(*(one(client, number) for number in range(TASKS)))


def test_threads_share_a_blocking_client(shared_server: ServerProcess) -> None:
    """Each thread gets the results of its own calls."""
    with Client(shared_server.address) as client, ThreadPoolExecutor(TASKS) as threads:

        def one(number: int) -> None:
            for turn in range(TURNS):
                content = json.dumps([number, turn])
                result = client.save(Message(provider="p", role="user", content=content))
                assert client.get(result.id).content == content

        list(threads.map(one, range(TASKS)))
