"""Every method, asynchronous and blocking, against a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Client,
    DeadlineExceededError,
    Durability,
    FailedPreconditionError,
    InvalidArgumentError,
    Message,
    Migration,
    NotFoundError,
    Order,
    Phase,
    RetryPolicy,
    ServingStatus,
    Store,
    UnavailableError,
    new_id,
)
from tests.client.conftest import Driver
from tests.support.server_process import ServerProcess

FULL = Message(
    "anthropic",
    "assistant",
    "Grüße 👋 — naïve\n\ttext",
    tags=["b", "a", "b"],
    timestamp=datetime(2024, 2, 29, 12, 0, 0, 123_457, tzinfo=timezone(timedelta(hours=5.5))),
    metadata={
        "big": 2**80,
        "exact": Decimal("0.1000000000000000000000000001"),
        "nested": {"list": [1, 2.5, None, True, "x"]},
    },
    session_id="",
)


async def test_message_round_trips(driver: Driver) -> None:
    saved = await driver.call("save", FULL)
    assert saved.created
    assert saved.durable_on == {Store.SQLITE}
    read = await driver.call("get", saved.id)
    assert read == replace(
        FULL,
        id=saved.id,
        created_at=read.created_at,
        revision=saved.revision,
        sequence=read.sequence,
    )
    assert read.sequence > 0
    assert read.timestamp.microsecond == 123_457
    assert read.timestamp.tzinfo is UTC
    assert isinstance(read.metadata["exact"], Decimal)


async def test_saving_again_changes_nothing(driver: Driver) -> None:
    message = replace(FULL, id=new_id(), timestamp=None)
    first = await driver.call("save", message, durability=Durability.BOTH)
    again = await driver.call("save", message)
    assert (again.id, again.revision, again.created) == (first.id, first.revision, False)


async def test_if_revision_prevents_lost_updates(driver: Driver) -> None:
    id = new_id()
    first = await driver.call("save", replace(FULL, id=id), if_revision=0)
    with pytest.raises(AlreadyExistsError, match=id):
        await driver.call("save", replace(FULL, id=id, content="2"), if_revision=0)
    with pytest.raises(AbortedError) as caught:
        await driver.call("save", replace(FULL, id=id, content="2"), if_revision=first.revision + 9)
    assert caught.value.metadata["stored_revision"] == str(first.revision)
    second = await driver.call(
        "save", replace(FULL, id=id, content="2"), if_revision=first.revision
    )
    with pytest.raises(AbortedError):
        await driver.call("delete", id, if_revision=first.revision)
    await driver.call("delete", id, if_revision=second.revision)
    with pytest.raises(NotFoundError, match=id):
        await driver.call("get", id)
    with pytest.raises(NotFoundError):
        await driver.call("delete", id)


async def test_every_violation_is_reported(driver: Driver) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await driver.call("save", Message("", "user", "\x00", tags=[""]))
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["message.provider", "message.content", "message.tags[0]"]
    assert caught.value.reason == "INVALID_REQUEST"
    assert all(field in str(caught.value) for field in fields)
    assert "\n" not in str(caught.value)


async def test_any_number_of_ids_can_be_read(driver: Driver) -> None:
    session = new_id()
    messages = [Message("p", "r", f"n{i}", id=f"{session}-{i:04}") for i in range(1500)]
    await driver.call("bulk_save", messages)
    wanted = [messages[-1].id, "nobody", *(m.id for m in messages), messages[0].id, "nobody"]
    found = await driver.call("batch_get", iter(wanted))
    assert [m.id for m in found.messages] == [id for id in wanted if id != "nobody"]
    assert found.missing_ids == ("nobody", "nobody")
    nothing = await driver.call("batch_get", [])
    assert (nothing.messages, nothing.missing_ids) == ((), ())
    with pytest.raises(TypeError, match="the one string 'abc'"):
        await driver.call("batch_get", "abc")


async def test_oversized_batch_get_is_divided(driver: Driver) -> None:
    prefix = new_id()
    ids = [f"{prefix}-{i}" for i in range(100)]
    await driver.call("bulk_save", [Message("p", "r", "€" * 100_000, id=id) for id in ids])
    found = await driver.call("batch_get", ids, timeout=60)
    assert [message.id for message in found.messages] == ids


async def test_session_is_listed_in_pages(driver: Driver) -> None:
    session = new_id()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    messages = [
        Message("p", "r", f"n{i}", timestamp=start + timedelta(seconds=i), session_id=session)
        for i in range(23)
    ]
    await driver.call("bulk_save", messages)
    listed = await driver.all("list", session, page_size=5)
    assert [m.content for m in listed] == [f"n{i}" for i in range(23)]
    backwards = await driver.all("list", session, newest_first=True)
    assert backwards == listed[::-1]
    pages = await driver.pages("list", session, page_size=10)
    assert [len(page.items) for page in pages] == [10, 10, 3]
    rest = await driver.all("list", session, page_token=pages[0].next_page_token)
    assert rest == listed[10:]
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await driver.all("list", "another", page_token=pages[0].next_page_token)
    assert await driver.all("list", "nobody's") == []


async def test_search_applies_all_conditions(driver: Driver) -> None:
    session = new_id()
    at = datetime(2026, 3, 1, tzinfo=UTC)

    def said(content: str, **changes: Any) -> Message:
        values: dict[str, Any] = {"session_id": session, "timestamp": at} | changes
        return Message("openai", "user", content, **values)

    await driver.call(
        "bulk_save",
        [
            said("The running fox", tags=["x", "y"], metadata={"a": {"b": 1, "c": 2}}),
            said("A fox that ran on", timestamp=at + timedelta(microseconds=1)),
            said("Hounds run", timestamp=at + timedelta(microseconds=2)),
        ],
    )

    async def found(query: str = "", **conditions: Any) -> list[str]:
        results = await driver.all("search", query, session_id=session, **conditions)
        return [result.message.content for result in results]

    assert sorted(await found("fox -ran")) == ["The running fox"]
    assert await found(order=Order.OLDEST) == ["The running fox", "A fox that ran on", "Hounds run"]
    assert await found(order=Order.NEWEST, page_size=1) == (await found(order=Order.OLDEST))[::-1]
    assert await found(tags=["y", "x"]) == ["The running fox"]
    assert await found(metadata={"a": {"b": 1}}) == ["The running fox"]
    moments = [at + timedelta(microseconds=n) for n in (1, 2)]
    assert await found(start=moments[0], end=moments[1]) == ["A fox that ran on"]
    assert await found(provider="google") == []
    assert await found(role="user", provider="openai", query="hounds") == ["Hounds run"]
    (page,) = await driver.pages("search", "hounds", session_id=session)
    assert page.items[0].highlight("<", ">") == "<Hounds> run"
    assert page.items[0].score > 0


async def test_invalid_message_is_rejected_before_sending(driver: Driver) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is the mistake
    with pytest.raises(InvalidArgumentError, match=r"start: .* has no time zone"):
        await driver.all("search", start=naive)
    with pytest.raises(InvalidArgumentError, match=r"metadata\.a: nan is not"):
        await driver.all("search", metadata={"a": float("nan")})
    with pytest.raises(InvalidArgumentError, match="lone surrogate"):
        await driver.all("search", "\ud800")
    with pytest.raises(InvalidArgumentError, match="id"):
        await driver.call("get", 5)
    with pytest.raises(InvalidArgumentError, match="if_revision"):
        await driver.call("delete", "x", if_revision=2**64)
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        await driver.call("get", "x", timeout=0)


async def test_health_returns_the_serving_status(driver: Driver) -> None:
    assert await driver.call("health") is ServingStatus.SERVING
    assert await driver.call("health", "sagastore.v1.StorageService") is ServingStatus.SERVING
    with pytest.raises(NotFoundError):
        await driver.call("health", "nobody.Service")


async def test_migration_state_is_returned(driver: Driver) -> None:
    now = await driver.call("migration.get")
    assert now.phase is Phase.SQLITE_ONLY
    assert [store.store for store in now.stores] == [Store.SQLITE]
    assert all(store.healthy for store in now.stores)
    assert [blocker.reason for blocker in now.blockers_to_next]
    assert await driver.all("migration.quarantine") == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("change_phase", (Phase.DUAL_WRITE,)), ("control_backfill", ()), ("verify", ())],
)
async def test_single_store_rejects_migration_commands(
    driver: Driver, name: str, arguments: tuple[Any, ...]
) -> None:
    method = driver.all if name == "verify" else driver.call
    with pytest.raises(FailedPreconditionError) as caught:
        await method(f"migration.{name}", *arguments)
    assert caught.value.blockers
    for blocker in caught.value.blockers:
        assert blocker.reason == blocker.reason.upper() != ""
        assert blocker.detail in str(caught.value)


async def test_single_store_watch_equals_get(driver: Driver) -> None:
    async def first(client: AsyncClient) -> Migration:
        async with aclosing(client.migration.watch()) as states:
            return await anext(states)

    def first_blocking(client: Client) -> Migration:
        return next(iter(client.migration.watch()))

    client = driver.client
    if isinstance(client, AsyncClient):
        now = await first(client)
    else:
        now = await asyncio.to_thread(first_blocking, client)
    expected = await driver.call("migration.get")
    assert (now.phase, now.epoch) == (expected.phase, expected.epoch)
    assert now.blockers_to_next == expected.blockers_to_next


@pytest.fixture(params=["async", "blocking"])
def make(request: pytest.FixtureRequest) -> type[AsyncClient] | type[Client]:
    """Return the class of a client."""
    return AsyncClient if request.param == "async" else Client


ONCE = RetryPolicy(max_attempts=1)


async def test_connection_refused_is_reported_with_address_and_hint(
    make: type[AsyncClient] | type[Client], refusing_address: str
) -> None:
    driver = Driver(make(refusing_address, retry=ONCE))
    with pytest.raises(UnavailableError) as caught:
        await driver.call("get", "x")
    assert str(caught.value) == (
        f"cannot reach {refusing_address}: connection refused; is the server running?"
    )
    assert caught.value.unsent
    for name, arguments in (("bulk_save", ([Message("p", "r", "c")],)), ("health", ())):
        with pytest.raises(UnavailableError, match="is the server running"):
            await driver.call(name, *arguments)
    with pytest.raises(UnavailableError, match="is the server running"):
        await driver.all("export")
    await driver.call("close")


async def test_missing_socket_is_reported(tmp_path: Any) -> None:
    async with AsyncClient(f"unix:{tmp_path}/none", retry=ONCE) as client:
        with pytest.raises(UnavailableError, match=f"unix:{tmp_path}/none: no such socket"):
            await client.get("x")


async def test_tls_to_a_plain_text_port_is_reported(shared_server: ServerProcess) -> None:
    async with AsyncClient(shared_server.address, tls=True, retry=ONCE) as client:
        with pytest.raises(UnavailableError, match="does not use TLS on this port; leave out tls"):
            await client.get("x")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process for a while")
async def test_unresponsive_server_ends_at_the_deadline(
    make: type[AsyncClient] | type[Client], running_server: ServerProcess
) -> None:
    driver = Driver(make(running_server.address, timeout=0.5))
    await driver.call("health", timeout=30)
    os.kill(running_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceededError, match=running_server.address):
            await driver.call("get", "x")
        with pytest.raises(DeadlineExceededError, match=running_server.address):
            await driver.call("bulk_save", [Message("p", "r", "c")], timeout=0.5)
        with pytest.raises(DeadlineExceededError, match=running_server.address):
            await driver.all("export", timeout=0.5)
    finally:
        os.kill(running_server.pid, signal.SIGCONT)
    await driver.call("close")


async def test_blocking_client_works_inside_a_running_loop(shared_server: ServerProcess) -> None:
    async with AsyncClient(shared_server.address) as client:
        with Client(shared_server.address) as blocking:
            for number in range(20):
                id = blocking.save(Message("p", "r", f"n{number}")).id
                assert (await client.get(id)).content == f"n{number}"


def test_blocking_client_is_shared_by_threads(shared_server: ServerProcess) -> None:
    results: list[list[str]] = [[] for _ in range(8)]
    with Client(shared_server.address) as client:

        def work(into: list[str]) -> None:
            for number in range(25):
                id = client.save(Message("p", "r", f"n{number}")).id
                into.append(client.get(id).content)

        threads = [threading.Thread(target=work, args=(into,)) for into in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [[f"n{number}" for number in range(25)]] * 8


async def test_async_client_is_shared_by_tasks(shared_server: ServerProcess) -> None:
    async with AsyncClient(shared_server.address) as client:
        saved = await asyncio.gather(
            *(client.save(Message("p", "r", f"n{number}")) for number in range(200))
        )
        read = await client.batch_get(result.id for result in saved)
    assert [m.content for m in read.messages] == [f"n{number}" for number in range(200)]


async def test_closed_client_is_reported(shared_server: ServerProcess) -> None:
    client = AsyncClient(shared_server.address)
    await client.health()
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.health()
    with Client(shared_server.address) as blocking:
        blocking.health()
    blocking.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        blocking.health()


async def test_iterators_can_be_abandoned(driver: Driver) -> None:
    session = new_id()
    messages = [
        Message("p", "r", f"n{i}", id=f"{session}-{i}", session_id=session) for i in range(30)
    ]
    await driver.call("bulk_save", messages)
    client = driver.client
    if isinstance(client, AsyncClient):
        async for _ in client.export(batch_size=1):
            break
        acks = client.bulk_save_stream(messages, batch_size=1)
        async for _ in acks:
            break
        await acks.aclose()
    else:

        def leave(iterator: Iterator[Any]) -> None:
            next(iterator)

        await asyncio.to_thread(leave, client.export(batch_size=1))
        await asyncio.to_thread(leave, client.bulk_save_stream(messages, batch_size=1))
    assert len(await driver.all("list", session)) == 30
