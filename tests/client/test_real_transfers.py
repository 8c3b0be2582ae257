"""Bulk saves and exports against a real server, which some tests kill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from sagastore import (
    AsyncClient,
    BulkAck,
    BulkProgress,
    Client,
    InvalidArgumentError,
    Message,
    OnConflict,
    RetryPolicy,
    UnavailableError,
)
from tests.client.conftest import Driver
from tests.support.server_process import ServerProcess

PATIENT = RetryPolicy(max_attempts=1000, max_backoff=0.2)


def message(number: int, content: str = "") -> Message:
    """Return a message that tells its number."""
    return Message("p", "user", content or f"content {number}", id=f"m-{number:06}")


def mixed(count: int) -> Iterator[Message]:
    """Yield messages, every hundredth of which breaks a rule, here or at the server."""
    for number in range(count):
        if number % 200 == 50:
            yield Message("p", "user", "\x00", id=f"m-{number:06}")
        elif number % 200 == 150:
            yield Message("p", "user", "\ud800", id=f"m-{number:06}")
        else:
            yield message(number)


def is_rejected(number: int) -> bool:
    return number % 100 == 50


async def test_bulk_save_reports_rejects_and_progress(own_driver: Driver) -> None:
    progress: list[BulkProgress] = []
    result = await own_driver.call(
        "bulk_save", mixed(5000), batch_size=300, on_progress=progress.append
    )
    bad = [number for number in range(5000) if is_rejected(number)]
    assert (result.total, result.saved) == (5000, 5000 - len(bad))
    assert (result.unchanged, result.skipped) == (0, 0)
    assert [r.position for r in result.rejected] == bad
    assert [r.id for r in result.rejected] == [f"m-{number:06}" for number in bad]
    assert {r.field for r in result.rejected} == {"content"}
    assert [p.acknowledged for p in progress] == [*range(300, 5000, 300), 5000]
    assert progress[-1].saved == result.saved
    assert progress[-1].rejected == len(bad)
    exported = await own_driver.all("export")
    assert [m.content for m in exported] == [
        f"content {number}" for number in range(5000) if not is_rejected(number)
    ]


async def test_repeated_bulk_save_changes_nothing(own_driver: Driver) -> None:
    messages = [message(number) for number in range(2500)]
    await own_driver.call("bulk_save", messages)
    again = await own_driver.call("bulk_save", iter(messages))
    assert (again.saved, again.unchanged) == (0, 2500)
    changed = [message(number, "changed") for number in range(10)]
    kept = await own_driver.call("bulk_save", changed, on_conflict=OnConflict.SKIP)
    assert (kept.saved, kept.skipped) == (0, 10)
    replaced = await own_driver.call("bulk_save", changed)
    assert replaced.saved == 10
    twice = await own_driver.call("bulk_save", [message(1, "first"), message(1, "last")])
    assert (twice.saved, twice.skipped) == (1, 1)
    assert (await own_driver.call("get", message(1).id)).content == "last"


async def test_empty_bulk_save_saves_nothing(own_driver: Driver) -> None:
    result = await own_driver.call("bulk_save", [])
    assert (result.total, result.rejected) == (0, ())
    assert await own_driver.all("export") == []
    refused = await own_driver.call("bulk_save", [message(1, "\ud800")])
    assert (refused.total, len(refused.rejected)) == (1, 1)


async def test_acknowledgements_cover_the_input_in_order(own_driver: Driver) -> None:
    acks: list[BulkAck] = await own_driver.all("bulk_save_stream", mixed(2050), batch_size=100)
    position = 0
    for ack in acks:
        assert ack.first_position == position
        assert ack.saved + ack.unchanged + ack.skipped + len(ack.rejected) == ack.count
        position += ack.count
    assert position == 2050


async def test_async_input_is_read_with_backpressure(
    client: AsyncClient,
) -> None:
    read = 0

    async def source() -> AsyncIterator[Message]:
        nonlocal read
        for number in range(3000):
            read += 1
            yield message(number)
            if number % 100 == 0:
                await asyncio.sleep(0)

    acknowledged = 0
    async for ack in client.bulk_save_stream(source(), batch_size=100, max_in_flight=2):
        acknowledged += ack.count
        # Two batches in flight, and what was acknowledged together with this one.
        assert read - acknowledged <= 400
    assert acknowledged == 3000


async def test_large_messages_are_divided_by_bytes(own_driver: Driver) -> None:
    messages = [message(number, "€" * 100_000) for number in range(30)]
    acks: list[BulkAck] = await own_driver.all("bulk_save_stream", messages)
    assert len(acks) > 1
    assert sum(ack.saved for ack in acks) == 30
    batches = await own_driver.all("export_batches")
    assert [m.id for batch in batches for m in batch.messages] == [m.id for m in messages]


async def test_input_error_is_raised(own_driver: Driver) -> None:
    def source() -> Iterator[Message]:
        yield message(1)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        await own_driver.call("bulk_save", source())
    with pytest.raises(TypeError, match=r"messages\[1\]: expected a Message, got dict"):
        await own_driver.call("bulk_save", [message(1), {}])
    with pytest.raises(ValueError, match="batch_size must be 1 to 1000"):
        await own_driver.call("bulk_save", [], batch_size=1001)
    with pytest.raises(ValueError, match="max_in_flight must be at least 1"):
        await own_driver.call("bulk_save", [], max_in_flight=0)


async def test_export_continues_from_any_token(own_driver: Driver) -> None:
    await own_driver.call("bulk_save", map(message, range(1000)))
    batches = await own_driver.all("export_batches", batch_size=300)
    everything = [m for batch in batches for m in batch.messages]
    assert [m.id for m in everything] == [message(number).id for number in range(1000)]
    done = 0
    for batch in batches:
        done += len(batch.messages)
        rest = await own_driver.all("export", resume_token=batch.resume_token)
        assert rest == everything[done:]
    with pytest.raises(InvalidArgumentError, match="resume_token"):
        await own_driver.all("export", resume_token="nonsense")
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        await own_driver.all("export", batch_size=-1)


class Killer:
    """Kills a server once and starts it again, in the background."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._starting: threading.Thread | None = None

    def strike(self) -> None:
        """Kill and restart; only the first time."""
        if self._starting is None:
            self._server.kill9()
            self._starting = threading.Thread(target=self._server.start)
            self._starting.start()

    def done(self) -> bool:
        """Wait for the restart; tell whether there was one."""
        if self._starting is None:
            return False
        self._starting.join()
        return self._server.alive


async def everything(address: str) -> list[tuple[str, str]]:
    """Return the id and content of all that is stored."""
    async with AsyncClient(address, retry=PATIENT) as client:
        return [(m.id, m.content) async for m in client.export()]


LEDGER = [(message(number).id, f"content {number}") for number in range(5000)]


async def test_bulk_save_survives_a_killed_server(running_server: ServerProcess) -> None:
    killer = Killer(running_server)
    positions: list[int] = []
    async with AsyncClient(running_server.address) as client:
        acks = client.bulk_save_stream(map(message, range(5000)), batch_size=100)
        async with aclosing(acks):
            async for ack in acks:
                positions += range(ack.first_position, ack.first_position + ack.count)
                assert ack.saved + ack.unchanged == ack.count
                if len(positions) >= 1500:
                    killer.strike()
    assert killer.done()
    assert positions == list(range(5000))
    assert await everything(running_server.address) == LEDGER


def test_blocking_bulk_save_survives_a_killed_server(running_server: ServerProcess) -> None:
    killer = Killer(running_server)

    def progress(now: BulkProgress) -> None:
        if now.acknowledged >= 1500:
            killer.strike()

    with Client(running_server.address) as client:
        result = client.bulk_save(map(message, range(5000)), batch_size=100, on_progress=progress)
        assert killer.done()
        assert result.total == 5000
        assert result.saved + result.unchanged == 5000
        assert [(m.id, m.content) for m in client.export()] == LEDGER


async def test_acknowledged_messages_survive_a_killed_server(running_server: ServerProcess) -> None:
    acknowledged = 0

    def progress(now: BulkProgress) -> None:
        nonlocal acknowledged
        acknowledged = now.acknowledged
        if running_server.alive and acknowledged >= 1000:
            running_server.kill9()

    async with AsyncClient(running_server.address, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError, match=running_server.address):
            await client.bulk_save(map(message, range(5000)), batch_size=100, on_progress=progress)
    await asyncio.to_thread(running_server.start)
    assert acknowledged >= 1000
    assert (await everything(running_server.address))[:acknowledged] == LEDGER[:acknowledged]


async def test_export_survives_a_killed_server(running_server: ServerProcess) -> None:
    killer = Killer(running_server)
    large = "x" * 20_000  # More than the connection's buffers hold.
    async with AsyncClient(running_server.address) as client:
        await client.bulk_save(message(number, large) for number in range(2000))
        exported: list[str] = []
        async for read in client.export(batch_size=50):
            exported.append(read.id)
            if len(exported) == 300:
                await asyncio.to_thread(killer.strike)
    assert killer.done()
    assert exported == [id for id, _ in LEDGER[:2000]]


def test_blocking_export_survives_a_killed_server(running_server: ServerProcess) -> None:
    killer = Killer(running_server)
    with Client(running_server.address) as client:
        client.bulk_save(message(number, "x" * 20_000) for number in range(2000))
        exported: list[str] = []
        for batch in client.export_batches(batch_size=50):
            exported += (m.id for m in batch.messages)
            if len(exported) >= 300:
                killer.strike()
    assert killer.done()
    assert exported == [id for id, _ in LEDGER[:2000]]


async def test_transfer_ends_if_the_server_does_not_return(running_server: ServerProcess) -> None:
    def progress(_: BulkProgress) -> None:
        if running_server.alive:
            running_server.kill9()

    async with AsyncClient(running_server.address) as client:
        with pytest.raises(UnavailableError, match=running_server.address):
            await client.bulk_save(
                map(message, range(5000)), batch_size=100, timeout=1, on_progress=progress
            )


async def _save_until(client: AsyncClient, stop: asyncio.Event, prefix: str) -> list[str]:
    """Save until it is enough, and once more; all of them new."""
    ids: list[str] = []
    while True:
        last = stop.is_set()
        result = await client.save(Message("p", "user", "c", id=f"{prefix}-{len(ids)}"), timeout=60)
        ids.append(result.id)
        if last:
            return ids


async def _while_saving(client: AsyncClient, disturb: Callable[[], Any]) -> set[str]:
    """Disturb the server while eight tasks save; return the ids saved."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(_save_until(client, stop, f"t{n}")) for n in range(8)]
    await asyncio.to_thread(disturb)
    stop.set()
    return {id for ids in await asyncio.gather(*tasks) for id in ids}


async def test_calls_survive_an_orderly_restart(running_server: ServerProcess) -> None:
    async with AsyncClient(running_server.address, retry=PATIENT) as client:
        await client.health()
        saved = await _while_saving(client, running_server.restart)
    assert {id for id, _ in await everything(running_server.address)} == saved


async def test_calls_survive_a_killed_server(running_server: ServerProcess) -> None:
    def kill() -> None:
        running_server.kill9()
        running_server.start()

    async with AsyncClient(running_server.address, retry=PATIENT) as client:
        await client.health()
        saved = await _while_saving(client, kill)
    assert {id for id, _ in await everything(running_server.address)} == saved


async def test_bulk_save_survives_an_orderly_restart(
    running_server: ServerProcess,
) -> None:
    restarting: asyncio.Task[ServerProcess] | None = None
    acknowledged = 0

    async def source() -> AsyncIterator[Message]:
        for number in range(3000):
            yield message(number)
            if number == 1000:
                # The stream is open, and has to be ended by the server.
                assert restarting is not None
                await asyncio.shield(restarting)

    async with AsyncClient(running_server.address, retry=PATIENT) as client:
        async for ack in client.bulk_save_stream(source(), batch_size=100, max_in_flight=1):
            acknowledged += ack.count
            if restarting is None:
                restarting = asyncio.create_task(asyncio.to_thread(running_server.restart))
    assert acknowledged == 3000
    assert await everything(running_server.address) == LEDGER[:3000]


async def test_unreachable_address_is_skipped(
    shared_server: ServerProcess, refusing_address: str
) -> None:
    once = RetryPolicy(max_attempts=1)
    async with AsyncClient([refusing_address, shared_server.address], retry=once) as client:
        for number in range(20):
            saved = await client.save(Message("p", "user", f"n{number}"))
            assert (await client.get(saved.id)).content == f"n{number}"
    with Client(f"{shared_server.address},{refusing_address}", retry=once) as blocking:
        assert blocking.bulk_save(Message("p", "user", "c") for _ in range(10)).saved == 10


async def test_all_unreachable_addresses_are_reported(refusing_address: str) -> None:
    async with AsyncClient([refusing_address, "127.0.0.1:1"], timeout=1) as client:
        with pytest.raises(UnavailableError, match="connection refused; is the server running"):
            await client.get("x")
