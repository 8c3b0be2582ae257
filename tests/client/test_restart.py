"""Every unary call while the server is down: it waits for the server, within its timeout."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagastore import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    File,
    Message,
    NotFoundError,
    SagaStoreError,
    UnavailableError,
)
from tests.support.server_process import STARTUP_SECONDS, ServerProcess

TURNS = 3
"""Rounds of each worker after the restart."""

PATIENCE = 3 * STARTUP_SECONDS
"""Timeout of a call in seconds: longer than a restart, also on a busy machine."""


def say(content: str) -> Message:
    return Message("openai", "user", content)


class Retries(logging.Handler):
    """Counts retries by the name of the task that makes the call."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.tasks: Counter[str] = Counter()
        self.changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        task = asyncio.current_task()
        assert task is not None
        with self.changed:
            self.tasks[task.get_name()] += 1
            self.changed.notify_all()

    async def wait_for(self, tasks: Iterable[asyncio.Task[Any]], count: int = 4) -> None:
        """Wait until each of the tasks has been retried so often."""
        names = [task.get_name() for task in tasks]

        def enough() -> bool:
            return all(self.tasks[name] >= count for name in names)

        def wait() -> None:
            with self.changed:
                assert self.changed.wait_for(enough, STARTUP_SECONDS), self.tasks

        await asyncio.to_thread(wait)


@pytest.fixture
def retries() -> Iterator[Retries]:
    log, handler = logging.getLogger("sagastore"), Retries()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path / "saga.db")
    yield server.start()
    server.close()


class Workers:
    """One worker for each unary call; each makes the call again and again."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.rounds: Counter[str] = Counter()
        self.saved: list[str] = []
        self.new: list[str] = []
        self.turns: list[str] = []
        self.guarded: list[str] = []
        self.title = ""

    def jobs(self) -> dict[str, Callable[[int], Awaitable[Any]]]:
        """Return the work of one round, by the name of the call."""
        client = self.client
        return {
            "Get": lambda n: client.get("known"),
            "BatchGet": lambda n: client.batch_get(["known"]),
            "List": lambda n: client.list("kept").first(),
            "Search": lambda n: client.search("known").first(),
            "GetSession": lambda n: client.sessions.get("kept"),
            "ListSessions": lambda n: client.sessions.list().first(),
            "GetFile": lambda n: client.files.get("known"),
            "ListFiles": lambda n: client.files.list().first(),
            "GetMigration": lambda n: client.migration.get(),
            "ListQuarantine": lambda n: client.migration.quarantine().first(),
            "ChangePhase": lambda n: client.migration.change_phase("sqlite-only"),
            "ControlBackfill": self.control_backfill,
            "Save": self.save,
            "Save if new": self.save_new,
            "SaveFile": lambda n: client.files.save(File("f", "/f", "txt", id=f"file {n}")),
            "Append": self.append,
            "Append guarded": self.append_guarded,
            "UpdateSession": self.update,
            "TruncateSession": self.truncate,
            "Delete": self.delete,
            "DeleteFile": self.delete_file,
            "DeleteSession": self.delete_session,
        }

    async def save(self, n: int) -> None:
        await self.client.save(Message("openai", "user", f"{n}", session_id="saves"))
        self.saved.append(f"{n}")

    async def save_new(self, n: int) -> None:
        result = await self.client.save(say(f"{n}"), if_revision=0)
        assert result.created
        self.new.append(result.id)

    async def append(self, n: int) -> None:
        turn = [f"{n} question", f"{n} answer"]
        await self.client.sessions.append("turns", map(say, turn))
        self.turns += turn

    async def append_guarded(self, n: int) -> None:
        revision = (await self.client.sessions.get("guarded")).revision if self.guarded else 0
        await self.client.sessions.append("guarded", [say(f"{n}")], if_revision=revision)
        self.guarded.append(f"{n}")

    async def update(self, n: int) -> None:
        self.title = (await self.client.sessions.update("titled", title=f"{n}")).title

    async def truncate(self, n: int) -> None:
        turn = await self.client.sessions.append("cut", map(say, ("kept", "removed")))
        await self.client.sessions.truncate("cut", keep_through=turn.saved[0].id)
        self.rounds["cut"] += 1

    async def delete(self, n: int) -> None:
        saved = await self.client.save(say("to delete"))
        await self.client.delete(saved.id)
        with pytest.raises(NotFoundError):
            await self.client.get(saved.id)

    async def delete_file(self, n: int) -> None:
        saved = await self.client.files.save(File("f", "/f", "txt"))
        await self.client.files.delete(saved.id)

    async def delete_session(self, n: int) -> None:
        await self.client.sessions.append("gone", map(say, "abc"))
        await self.client.sessions.delete("gone", timeout=PATIENCE)

    async def control_backfill(self, n: int) -> None:
        # Without PostgreSQL, the answer of the server is this error.
        with pytest.raises(FailedPreconditionError):
            await self.client.migration.control_backfill(paused=True)

    async def prepare(self) -> list[Coroutine[Any, Any, Any]]:
        """Return removals that are ready to be called."""
        client = self.client
        await client.save(Message("openai", "user", "x", id="x"))
        await client.files.save(File("f", "/f", "txt", id="x"))
        await client.sessions.append("x", map(say, "abc"))
        turn = await client.sessions.append("y", map(say, "abc"))
        other = await client.sessions.append("z", map(say, "abc"))
        return [
            client.delete("x"),
            client.files.delete("x"),
            client.sessions.delete("x", timeout=PATIENCE),
            client.sessions.truncate("y", keep_through=turn.saved[0].id),
            client.sessions.truncate("z", drop_last=1, if_revision=other.session.revision),
        ]

    async def run(self, name: str, stop: asyncio.Event) -> None:
        work, last = self.jobs()[name], 0
        while not stop.is_set() or self.rounds[name] < last + TURNS:
            if not stop.is_set():
                last = self.rounds[name]
            await work(self.rounds[name])
            self.rounds[name] += 1

    async def check(self) -> None:
        """Nothing is missing, and nothing is there twice."""
        assert await self.contents("saves") == self.saved
        assert await self.contents("turns") == self.turns
        assert await self.contents("guarded") == self.guarded
        assert await self.contents("cut") == ["kept"] * self.rounds["cut"]
        assert (await self.client.sessions.get("titled")).title == self.title
        assert not (await self.client.batch_get(self.new)).missing_ids
        assert await self.contents("y") == ["a"]
        assert await self.contents("z") == ["a", "b"]
        for session in ("gone", "x"):
            with pytest.raises(NotFoundError):
                await self.client.sessions.get(session)

    async def contents(self, session: str) -> list[str]:
        return [message.content async for message in self.client.list(session)]


async def test_calls_wait_for_a_restarted_server(server: ServerProcess, retries: Retries) -> None:
    """A blocking client and two event loops share the process, and its connections."""
    async with AsyncClient(server.address, timeout=PATIENCE) as client:
        await client.save(Message("openai", "user", "known", id="known", session_id="kept"))
        await client.files.save(File("f", "/f", "txt", id="known"))
        workers, stop = Workers(client), asyncio.Event()
        tasks = [asyncio.create_task(workers.run(name, stop)) for name in workers.jobs()]
        blocking = asyncio.create_task(asyncio.to_thread(read_until, server.address, stop.is_set))
        try:
            while min(workers.rounds[name] for name in workers.jobs()) < 1:
                await asyncio.wait(tasks, timeout=0.05, return_when=asyncio.FIRST_EXCEPTION)
                assert not [task.result() for task in tasks if task.done()]
            prepared = await workers.prepare()
            await asyncio.to_thread(server.kill9)
            # In tasks of their own: the workers of these calls may be in another step.
            tasks += [asyncio.create_task(call) for call in prepared]
            await retries.wait_for(tasks)
        finally:
            stop.set()
            await asyncio.to_thread(server.start)
        await asyncio.gather(*tasks, blocking)
        await workers.check()


def read_until(address: str, is_over: Callable[[], bool]) -> None:
    """Read with a blocking client in one thread, and on an event loop of its own in another."""

    async def reading() -> None:
        async with AsyncClient(address, timeout=PATIENCE) as client:
            while not is_over():
                await client.get("known")

    thread = threading.Thread(target=lambda: asyncio.run(reading()))
    thread.start()
    with Client(address, timeout=PATIENCE) as client:
        while not is_over():
            client.get("known")
    thread.join()


async def test_first_connection_waits_for_the_server(tmp_path: Path, retries: Retries) -> None:
    server = ServerProcess(tmp_path / "saga.db")
    try:
        server.start()
        server.terminate()
        async with AsyncClient(server.address, timeout=PATIENCE) as client:
            saving = asyncio.create_task(client.save(say("early")))
            exporting = asyncio.create_task(collect(client.export(timeout=PATIENCE)))
            loading = asyncio.create_task(client.bulk_save([say("bulk")], timeout=PATIENCE))
            await retries.wait_for([saving, exporting, loading])
            await asyncio.to_thread(server.start)
            assert (await saving).created
            await exporting
            assert (await loading).saved == 1
    finally:
        server.close()


async def collect(items: Any) -> list[Any]:
    return [item async for item in items]


async def test_calls_fail_at_the_deadline(refusing_address: str) -> None:
    line = rf"cannot reach {refusing_address}: connection refused; is the server running\?"

    async def fails(call: Awaitable[Any]) -> None:
        began = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await call
        # Up to 20 ms early: another attempt would have had no time.
        assert time.monotonic() - began > 1.17
        assert caught.match(rf"^{line} \(gave up after \d+ attempts in \d[.\d]* s\)$")

    async with AsyncClient(refusing_address, timeout=1.2) as client:
        workers = Workers(client)
        workers.guarded.append("read first")
        jobs = workers.jobs() | {
            "DeleteSession": lambda n: client.sessions.delete("gone", timeout=1.2),
            "ChangePhase": lambda n: client.migration.change_phase("sqlite-only", timeout=1.2),
            "ControlBackfill": lambda n: client.migration.control_backfill(paused=True),
        }
        await asyncio.gather(*[fails(job(0)) for job in jobs.values()])


async def test_streams_fail_at_their_timeout(refusing_address: str) -> None:
    async with AsyncClient(refusing_address) as client:
        for stream in (
            collect(client.export(timeout=0.5)),
            client.bulk_save([say("x")], timeout=0.5),
            collect(client.migration.watch(timeout=0.5)),
            collect(client.migration.verify(timeout=0.5)),
        ):
            with pytest.raises(SagaStoreError, match=r"connection refused.*\(gave up after \d+ at"):
                await stream
