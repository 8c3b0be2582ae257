"""An `AsyncClient` on another event loop than its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from sagastore import (
    AsyncClient,
    AsyncPager,
    File,
    Message,
    Phase,
    SagaStoreError,
    WrongEventLoopError,
)
from sagastore.v1 import message_pb2, storage_pb2
from tests.client.failing.scripted import Script, answer

FOUND = answer(storage_pb2.GetResponse(message=message_pb2.Message(id="x", content="c")))
HELLO = Message("openai", "user", "hello")

CALLS: dict[str, Callable[[AsyncClient], Any]] = {
    "batch_get": lambda c: c.batch_get(["x"]),
    "bulk_save": lambda c: c.bulk_save([HELLO]),
    "bulk_save_stream": lambda c: c.bulk_save_stream([HELLO]),
    "close": lambda c: c.close(),
    "delete": lambda c: c.delete("x"),
    "export": lambda c: c.export(),
    "export_batches": lambda c: c.export_batches(),
    "get": lambda c: c.get("x"),
    "health": lambda c: c.health(),
    "list": lambda c: c.list("s"),
    "save": lambda c: c.save(HELLO),
    "search": lambda c: c.search("word"),
    "sessions.append": lambda c: c.sessions.append("s", [HELLO]),
    "sessions.delete": lambda c: c.sessions.delete("s"),
    "sessions.get": lambda c: c.sessions.get("s"),
    "sessions.list": lambda c: c.sessions.list(),
    "sessions.truncate": lambda c: c.sessions.truncate("s", drop_last=1),
    "sessions.update": lambda c: c.sessions.update("s", title="t"),
    "files.delete": lambda c: c.files.delete("x"),
    "files.get": lambda c: c.files.get("x"),
    "files.list": lambda c: c.files.list(),
    "files.save": lambda c: c.files.save(File("f", "p", "pdf")),
    "migration.change_phase": lambda c: c.migration.change_phase(Phase.DUAL_WRITE),
    "migration.control_backfill": lambda c: c.migration.control_backfill(paused=True),
    "migration.get": lambda c: c.migration.get(),
    "migration.quarantine": lambda c: c.migration.quarantine(),
    "migration.verify": lambda c: c.migration.verify(),
    "migration.watch": lambda c: c.migration.watch(),
}


async def finish(call: Any) -> None:
    """Await a call, or read an iterator to its end."""
    if inspect.isawaitable(call):
        await call
    else:
        async for _ in call:
            pass


def test_every_method_is_tested() -> None:
    client = AsyncClient("127.0.0.1:1")
    groups = {"": client, "sessions.": client.sessions, "files.": client.files}
    groups["migration."] = client.migration
    found = {
        f"{prefix}{name}"
        for prefix, group in groups.items()
        for name in dir(group)
        if not name.startswith("_") and inspect.isroutine(getattr(group, name))
    }
    assert found == {*CALLS, "observe"}, "observe uses no connection"


@pytest.mark.parametrize("name", CALLS)
async def test_other_event_loop_is_reported(script: Script, client: AsyncClient, name: str) -> None:
    script.play("Get", FOUND)
    await client.get("x")

    async def call() -> None:
        await finish(CALLS[name](client))

    with pytest.raises(WrongEventLoopError) as caught:
        await asyncio.to_thread(lambda: asyncio.run(call()))
    text = str(caught.value)
    assert "belongs to another event loop" in text
    assert "create one client for each loop, or use the blocking Client" in text
    assert "\n" not in text
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, SagaStoreError)
    assert len(script.requests) == 1
    await client.get("x")


async def test_pager_methods_on_another_event_loop_are_reported(
    script: Script, client: AsyncClient
) -> None:
    script.play("Get", FOUND)
    await client.get("x")
    pager = client.sessions.list()
    assert isinstance(pager, AsyncPager)

    async def first() -> None:
        await pager.first()

    with pytest.raises(WrongEventLoopError):
        await asyncio.to_thread(lambda: asyncio.run(first()))


def test_second_asyncio_run_is_reported() -> None:
    """A client that outlives `asyncio.run` fails clearly in the next one, also in `close`."""
    client = AsyncClient("127.0.0.1:1")

    async def use() -> None:
        async with client:
            await client.get("x", timeout=0.2)

    async def begin() -> None:
        with pytest.raises(SagaStoreError):
            await client.get("x", timeout=0.2)

    asyncio.run(begin())
    with pytest.raises(WrongEventLoopError, match=r"each asyncio\.run\(\) starts a new loop"):
        asyncio.run(use())
    with pytest.raises(WrongEventLoopError):
        asyncio.run(client.close())
