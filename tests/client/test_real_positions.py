"""Positions and consistency, asynchronous and blocking, against real servers on both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sagastore import (
    AsyncClient,
    Client,
    Consistency,
    File,
    InvalidArgumentError,
    Message,
    UnavailableError,
    new_id,
)
from sagastore._consistency import newest
from sagastore_server.interfaces.consistency import decoded
from tests.client.conftest import Driver
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess

MakeDriver = Callable[[str], Driver]
LEVELS: list[str | Consistency] = ["latest", "any_replica", Consistency.LATEST]


@pytest.fixture(params=["async", "blocking"])
async def drivers(request: pytest.FixtureRequest) -> AsyncIterator[MakeDriver]:
    """Make clients of one kind with `reads="session"`."""
    made: list[AsyncClient | Client] = []

    def make(address: str) -> Driver:
        kind = AsyncClient if request.param == "async" else Client
        made.append(kind(address, reads="session"))
        return Driver(made[-1])

    yield make
    for client in made:
        if isinstance(client, AsyncClient):
            await client.close()
        else:
            await asyncio.to_thread(client.close)


@pytest.fixture
def writer(drivers: MakeDriver, shared_postgres_server: ServerProcess) -> Driver:
    return drivers(shared_postgres_server.address)


@pytest.fixture
def reader(drivers: MakeDriver, shared_postgres_server: ServerProcess) -> Driver:
    return drivers(shared_postgres_server.address)


def message(session: str, text: str = "hello") -> Message:
    return Message("openai", "user", text, session_id=session)


async def writes(driver: Driver, session: str) -> AsyncIterator[tuple[str, str]]:
    """Make every kind of write; yield its name and the position after it."""
    saved = await driver.call("save", message(session))
    yield "save", saved.position
    bulk = await driver.call("bulk_save", [message(session, str(n)) for n in range(5)])
    yield "bulk_save", bulk.position
    yield "append", (await driver.call("sessions.append", session, [message(session)])).position
    await driver.call("sessions.update", session, title="t")
    yield "update", driver.client.position
    removed = await driver.call("sessions.truncate", session, drop_last=1)
    yield "truncate", removed.position
    await driver.call("delete", saved.id)
    yield "delete", driver.client.position
    file = await driver.call("files.save", File("f", "p", "t"))
    yield "files.save", file.position
    await driver.call("files.delete", file.id)
    yield "files.delete", driver.client.position
    await driver.call("sessions.delete", session)
    yield "sessions.delete", driver.client.position


async def test_every_write_has_a_greater_position(writer: Driver) -> None:
    known = ""
    async for name, position in writes(writer, new_id()):
        assert position, name
        assert position != known, name
        assert newest(known, position) == position, name
        assert writer.client.position == position, name
        known = position


async def reads(driver: Driver, id: str, session: str, **values: Any) -> list[str]:
    """Make every kind of read that tells a position; return the positions."""
    found = [await driver.call("batch_get", [id], **values)]
    for name, arguments in (("list", (session,)), ("search", ("hello",))):
        found += await driver.pages(name, *arguments, **values)
    found += await driver.all("export_batches", **values)
    for name in ("sessions.list", "files.list"):
        found += await driver.pages(name, **values)
    await driver.call("get", id, **values)
    await driver.call("sessions.get", session, **values)
    return [one.position for one in found]


async def test_reads_see_the_position_of_another_client(writer: Driver, reader: Driver) -> None:
    session = new_id()
    saved = await writer.call("save", message(session))
    await writer.call("files.save", File("f", "p", "t", id=session))
    handed = writer.client.position
    for position in await reads(reader, saved.id, session, consistency=handed):
        assert newest(position, handed) == position
    assert newest(handed, reader.client.position) == reader.client.position
    await reader.call("files.get", session, consistency=handed)
    reader.client.observe(handed)
    assert (await reader.call("get", saved.id)).id == saved.id


async def test_session_reads_see_own_writes(writer: Driver) -> None:
    session = new_id()
    for number in range(3):
        saved = await writer.call("save", message(session, str(number)))
        assert (await writer.call("get", saved.id)).content == str(number)
        listed = await writer.all("list", session, page_size=1)
        assert [one.content for one in listed] == [str(n) for n in range(number + 1)]


async def test_session_continues_in_a_new_process(
    writer: Driver, drivers: MakeDriver, tmp_path: Path
) -> None:
    """A server process that has just started answers a position that another one has given."""
    async with fresh_schema() as dsn:
        first = ServerProcess(tmp_path / "unused", postgres=dsn)
        second = ServerProcess(tmp_path / "unused", postgres=dsn)
        try:
            first.start()
            one = drivers(first.address)
            saved = await one.call("save", message(new_id()))
            second.start()
            other = drivers(second.address)
            other.client.observe(one.client.position)
            assert (await other.call("get", saved.id)).id == saved.id
            assert newest(saved.position, other.client.position) == other.client.position
        finally:
            first.close()
            second.close()


async def test_position_of_another_system_is_refused_or_forgotten(writer: Driver) -> None:
    saved = await writer.call("save", message(new_id()))
    here = decoded(saved.position)
    foreign = here._replace(system=here.system ^ 1).encoded()
    with pytest.raises(InvalidArgumentError, match="position of another PostgreSQL") as caught:
        await writer.call("get", saved.id, consistency=foreign)
    assert caught.value.violations[0].field == "consistency.at_least"
    writer.client.observe(foreign)
    assert writer.client.position == foreign
    assert (await writer.call("get", saved.id)).id == saved.id
    assert decoded(writer.client.position).system == here.system


async def test_position_of_an_unknown_version_is_refused_or_forgotten(writer: Driver) -> None:
    saved = await writer.call("save", message(new_id()))
    unknown = f"Ag{saved.position[2:]}AAAA"
    with pytest.raises(InvalidArgumentError, match="is not a position"):
        await writer.call("get", saved.id, consistency=unknown)
    writer.client.observe(unknown)
    assert [one.id for one in await writer.all("export")][-1:] != []
    assert decoded(writer.client.position)


@pytest.mark.parametrize("change", [{"timeline": 2**32 - 1}, {"lsn": 2**64 - 1}])
async def test_position_that_the_server_cannot_reach_is_unavailable(
    writer: Driver, change: dict[str, int]
) -> None:
    saved = await writer.call("save", message(new_id()))
    future = decoded(saved.position)._replace(**change).encoded()
    with pytest.raises(UnavailableError):
        await writer.call("get", saved.id, consistency=future, timeout=0.5)
    writer.client.observe(future)
    with pytest.raises(UnavailableError):
        await writer.call("get", saved.id, timeout=0.5)
    assert (await writer.call("get", saved.id, consistency="latest")).id == saved.id


@pytest.mark.parametrize("level", LEVELS, ids=str)
async def test_every_read_accepts_each_level(writer: Driver, level: Consistency | str) -> None:
    session = new_id()
    saved = await writer.call("save", message(session))
    assert all(await reads(writer, saved.id, session, consistency=level))


async def test_store_without_positions_satisfies_every_requirement(
    drivers: MakeDriver, writer: Driver, shared_server: ServerProcess
) -> None:
    session = new_id()
    sqlite = drivers(shared_server.address)
    saved = await sqlite.call("save", message(session))
    assert saved.position == sqlite.client.position == ""
    elsewhere = (await writer.call("save", message(session))).position
    for level in (*LEVELS, saved.position, elsewhere):
        assert set(await reads(sqlite, saved.id, session, consistency=level)) == {""}
    sqlite.client.observe(elsewhere)
    assert (await sqlite.call("get", saved.id)).id == saved.id
