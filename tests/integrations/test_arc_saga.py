"""The drop-in against a real server: conversion, errors, event loops and health."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from fastapi.testclient import TestClient
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import HealthServicer  # type: ignore[import-untyped]

from sagastore import AlreadyExistsError, Client, new_id
from sagastore import Message as StoredMessage
from tests.conftest import ServerFactory
from tests.integrations.arc_app import dataclass_models
from tests.integrations.arc_app.dataclass_models import Message, MessageRole, Provider
from tests.integrations.arc_storage import Storage, StorageError, dropin, saga_app
from tests.support.ports import reserved_port, taken_port
from tests.support.server_process import ServerProcess

SOON = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class NaiveMessage(Message):
    """A message whose times have no zone."""

    timestamp: datetime = field(default_factory=dataclass_models.naive_now)


def message(content: str = "hello", **values: Any) -> Message:
    return Message(Provider.OPENAI, MessageRole.USER, content, **values)


def threads() -> list[str]:
    return [one.name for one in threading.enumerate()]


@pytest.fixture
def refusing_address() -> Iterator[str]:
    """Name an address that refuses connections for as long as the test lasts."""
    with reserved_port() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Name an address that accepts connections and never answers."""
    with taken_port() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def not_serving() -> Iterator[str]:
    """Name a server whose health is NOT_SERVING, as while it starts or drains."""
    health = HealthServicer()
    health.set("sagastore.v1.StorageService", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor())
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


# ---------------------------------------------------------------------- messages


async def test_message_round_trips(storage: Storage, models: ModuleType) -> None:
    await storage.initialize()
    saved = models.Message(
        provider=models.Provider.ANTIGRAVITY,
        role=models.MessageRole.SYSTEM,
        content="naïve\n\ttext 👋",
        tags=["b", "a", "b"],
        timestamp=datetime(2024, 2, 29, 12, 0, 0, 123_457, tzinfo=UTC),
        metadata={"big": 2**80, "nested": {"list": [1, 2.5, None, 0.1]}},
        session_id=new_id(),
    )
    assert await storage.save_message(saved) == saved.id
    found = await storage.get_message_by_id(saved.id)
    assert found == saved
    assert type(found.provider) is models.Provider
    assert await storage.get_by_session(saved.session_id) == [saved]


async def test_duplicate_id_is_a_storage_error(storage: Storage, models: ModuleType) -> None:
    saved = models.Message(
        provider=models.Provider.GROQ, role=models.MessageRole.USER, content="first"
    )
    await storage.save_message(saved)
    for content in ("first", "second"):
        saved.content = content
        with pytest.raises(
            StorageError, match=f"a message with the id '{saved.id}' exists"
        ) as error:
            await storage.save_message(saved)
        assert error.value.operation == "save_message"
        assert isinstance(error.value.__cause__, AlreadyExistsError)
    assert (await storage.get_message_by_id(saved.id)).content == "first"


async def test_unknown_and_impossible_ids_are_not_found(storage: Storage) -> None:
    for id in ("nothing", "", "x" * 1000, "nul\x00"):
        assert await storage.get_message_by_id(id) is None
        assert await storage.get_by_session(id or new_id()) == []


async def test_equal_times_keep_the_order_of_saving(shared_server: ServerProcess) -> None:
    storage, session = dropin(shared_server.address), new_id()
    ids = [str(number) + new_id() for number in (3, 1, 2, 0)]
    for id in ids:
        await storage.save_message(message(id=id, timestamp=SOON, session_id=session))
    earlier = message(timestamp=SOON - timedelta(seconds=1), session_id=session)
    await storage.save_message(earlier)
    found = [one.id for one in await storage.get_by_session(session)]
    assert found == [earlier.id, *ids]
    await storage.close()


async def test_long_session_is_complete(shared_server: ServerProcess) -> None:
    storage, session = dropin(shared_server.address), new_id()
    messages = [message(str(n), timestamp=SOON, session_id=session) for n in range(501)]
    await asyncio.gather(*map(storage.save_message, messages))
    found = await storage.get_by_session(session)
    assert sorted(int(one.content) for one in found) == list(range(501))
    await storage.close()


async def test_times_are_utc(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for time in (noon.replace(tzinfo=None), noon.astimezone(timezone(timedelta(hours=5)))):
        id = await storage.save_message(message(timestamp=time))
        found = await storage.get_message_by_id(id)
        assert (found.timestamp, found.timestamp.utcoffset()) == (noon, timedelta(0))
    await storage.close()


async def test_times_are_naive_if_the_class_creates_naive_ones(
    shared_server: ServerProcess,
) -> None:
    models = _classes(Message=NaiveMessage)
    storage = dropin(shared_server.address, models)
    id = await storage.save_message(message(timestamp=SOON))
    assert (await storage.get_message_by_id(id)).timestamp == SOON.replace(tzinfo=None)
    await storage.close()


async def test_metadata_is_stored_as_json(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address)
    id = await storage.save_message(message(metadata={1: (True, 2)}))
    assert (await storage.get_message_by_id(id)).metadata == {"1": [True, 2]}
    for metadata in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(StorageError):
            await storage.save_message(message(metadata=metadata))
    await storage.close()


async def test_value_outside_an_enum_is_a_storage_error(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address)
    with Client(shared_server.address) as client:
        id = client.save(StoredMessage("openai", "tool", "x")).id
    with pytest.raises(StorageError, match=r"Message.role cannot be 'tool': MessageRole has user"):
        await storage.get_message_by_id(id)
    await storage.close()


# ---------------------------------------------------------------------- search


async def test_search_is_ordered_by_relevance(shared_server: ServerProcess) -> None:
    storage, tag = dropin(shared_server.address), new_id()
    for content in ("one zebra among many other words", "zebra zebra", "a lion"):
        await storage.save_message(message(content, tags=[tag]))
    found = await storage.search_messages("zebra", tags=[tag])
    assert [one.content for one in found] == ["zebra zebra", "one zebra among many other words"]
    assert found[0].relevance_score > found[1].relevance_score > 0
    assert {one.entity_type for one in found} == {"message"}
    assert len(await storage.search_messages("zebra", [tag], 1)) == 1
    assert await storage.search_messages("zebra", [tag], 0) == []
    assert len(await storage.search_messages("zebra", [tag], -1)) == 2
    assert len(await storage.search_messages("zebra", [tag], 10_000)) == 2
    await storage.close()


async def test_search_without_words_lists_by_tags(shared_server: ServerProcess) -> None:
    storage, tag = dropin(shared_server.address), new_id()
    ids = [
        await storage.save_message(
            message(str(n), tags=[tag, f"n{n}"], timestamp=SOON + timedelta(n))
        )
        for n in range(3)
    ]
    assert [one.entity_id for one in await storage.search_messages("", [tag])] == ids[::-1]
    assert [one.entity_id for one in await storage.search_messages("", [tag, "n1"])] == [ids[1]]
    await storage.close()


# ---------------------------------------------------------------------- event loops


def test_storage_works_on_several_event_loops(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address)
    ids = [asyncio.run(storage.save_message(message(str(n)))) for n in range(3)]

    def read(id: str) -> str:
        return str(asyncio.run(storage.get_message_by_id(id)).content)

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(read, ids * 5)) == ["0", "1", "2"] * 5
    asyncio.run(storage.close())


def test_event_loop_per_request_leaks_nothing(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address)
    client = TestClient(saga_app(storage))  # Without a context: an event loop per request.
    document = {"provider": "openai", "role": "user", "content": "x"}

    def use() -> tuple[int, int]:
        id = client.post("/messages", json=document).json()["message_id"]
        assert client.get(f"/messages/{id}").json()["content"] == "x"
        return len(list(Path("/proc/self/fd").iterdir())), len(threads())

    for _ in range(3):
        before = use()
    for _ in range(30):
        after = use()
    assert after == before
    asyncio.run(storage.close())


async def test_more_calls_than_threads_all_succeed(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address, max_calls=2)
    saved = await asyncio.gather(*(storage.save_message(message(str(n))) for n in range(50)))
    assert len(set(saved)) == 50
    assert len([name for name in threads() if name.startswith("sagastore-arc-saga")]) == 2
    await storage.close()


async def test_closed_storage_connects_again(shared_server: ServerProcess) -> None:
    storage = dropin(shared_server.address)
    await storage.close()
    id = await storage.save_message(message())
    await storage.close()
    await storage.close()
    assert (await storage.get_message_by_id(id)).id == id
    await storage.close()


def test_storage_after_a_fork_says_so(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = dropin(shared_server.address)
    assert asyncio.run(storage.health_check())
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(StorageError, match="before the process forked"):
            asyncio.run(storage.save_message(message()))
        assert not asyncio.run(storage.health_check())
        asyncio.run(storage.close())


# ---------------------------------------------------------------------- failures


async def test_unavailable_service_is_a_storage_error(refusing_address: str) -> None:
    storage = dropin(refusing_address, timeout=0.3)
    calls = {
        "initialize": storage.initialize(),
        "save_message": storage.save_message(message()),
        "get_message_by_id": storage.get_message_by_id("x"),
        "get_by_session": storage.get_by_session("x"),
        "search_messages": storage.search_messages("x"),
        "save_file": storage.save_file(
            dataclass_models.File("f", "p", dataclass_models.FileType.PDF)
        ),
        "get_file_by_id": storage.get_file_by_id("x"),
    }
    for operation, call in calls.items():
        with pytest.raises(StorageError) as caught:
            await call
        assert caught.value.operation == operation
    assert await storage.health_check() is False
    await storage.close()


async def test_health_is_false_if_the_service_is_silent(silent_address: str) -> None:
    storage = dropin(silent_address, health_timeout=0.2)
    assert await storage.health_check() is False
    await storage.close()


async def test_health_is_false_if_the_service_does_not_serve(not_serving: str) -> None:
    storage = dropin(not_serving)
    assert await storage.health_check() is False
    await storage.close()


async def test_health_does_not_wait_for_other_calls(silent_address: str) -> None:
    storage = dropin(silent_address, health_timeout=0.2, timeout=100, max_calls=1)
    blocked = asyncio.create_task(storage.get_message_by_id("x"))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await storage.health_check() is False
    await storage.close()
    with pytest.raises(StorageError):
        await blocked


async def test_health_follows_the_service(server_process: ServerFactory) -> None:
    server = server_process().start()
    storage = dropin(server.address, timeout=30)
    assert await storage.health_check() is True
    server.kill9()
    assert await storage.health_check() is False
    server.restart()
    await storage.initialize()
    assert await storage.health_check() is True
    await storage.close()


def _classes(**replaced: Any) -> Any:
    """Return the classes of the application, some of them replaced."""
    names = ("Message", "File", "SearchResult")
    values = {name: getattr(dataclass_models, name) for name in names}
    return type("Classes", (), values | {"StorageError": StorageError} | replaced)
