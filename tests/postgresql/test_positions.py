"""Positions over a real socket, on PostgreSQL as the only store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from sagastore.v1 import file_pb2, message_pb2, session_pb2, storage_pb2
from sagastore.v1.file_pb2_grpc import FileServiceStub
from sagastore.v1.session_pb2_grpc import SessionServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.interfaces.consistency import WalPosition, decoded
from sagastore_server.rpc.admission import Limits
from sagastore_server.rpc.page_tokens import encode, request_key
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from tests.postgresql.targets import opened_plain, target_on
from tests.support.backends import opened
from tests.support.calls import as_call, at_least
from tests.support.drafts import draft, lone
from tests.support.in_process_server import served
from tests.support.messages import message
from tests.support.postgres import execute, new_database, server_dsn
from tests.support.rpc_errors import refused
from tests.support.waiting import until_async

SERVICES = (
    (storage_pb2, "StorageService", StorageServiceStub),
    (session_pb2, "SessionService", SessionServiceStub),
    (file_pb2, "FileService", FileServiceStub),
)


FILE = file_pb2.File(id="f", filename="x", filepath="/in/x", file_type="text/plain")


class Rpc(NamedTuple):
    """A method of the server under test."""

    name: str
    call: Callable[[Any], Awaitable[Any]]
    """Returns the last response."""
    reads: bool
    request: type[Any]


@asynccontextmanager
async def methods_of(backend: StorageBackend) -> AsyncIterator[dict[str, Rpc]]:
    """Serve ``backend``, and yield every method of the three services."""
    async with served(backend, Limits()) as server, server.channel() as channel:
        found = {}
        for module, name, stub in SERVICES:
            client = stub(channel)
            for method in module.DESCRIPTOR.services_by_name[name].methods:
                call = _last_response(getattr(client, method.name), method)
                reads = "consistency" in method.input_type.fields_by_name
                request = getattr(module, method.input_type.name)
                found[method.name] = Rpc(method.name, call, reads, request)
        yield found


def _last_response(call: Any, method: Any) -> Callable[[Any], Awaitable[Any]]:
    async def run(request: Any) -> Any:
        if not method.server_streaming:
            return await call(request)
        responses = call(iter([request])) if method.client_streaming else call(request)
        return [response async for response in responses][-1]

    return run


def requests() -> list[tuple[str, Any]]:
    """Return a request of each method, in an order in which all succeed."""
    turn = [message(id="a"), message(id="b")]
    return [
        ("Save", storage_pb2.SaveRequest(message=message(id="m"))),
        (
            "BatchSave",
            storage_pb2.BatchSaveRequest(
                requests=[storage_pb2.SaveRequest(message=message(id="c"))]
            ),
        ),
        ("BulkSave", storage_pb2.BulkSaveRequest(messages=[message(id="n")])),
        ("Append", session_pb2.AppendRequest(session_id="s", messages=turn)),
        ("SaveFile", file_pb2.SaveFileRequest(file=FILE)),
        *reads(),
        (
            "UpdateSession",
            session_pb2.UpdateSessionRequest(
                session=session_pb2.Session(session_id="s", title="t"),
                update_mask=FieldMask(paths=["title"]),
            ),
        ),
        ("TruncateSession", session_pb2.TruncateSessionRequest(session_id="s", drop_last=1)),
        ("DeleteSession", session_pb2.DeleteSessionRequest(session_id="s")),
        ("Delete", storage_pb2.DeleteRequest(id="m")),
        ("DeleteFile", file_pb2.DeleteFileRequest(id="f")),
    ]


def reads() -> list[tuple[str, Any]]:
    """Return a request of each method that reads."""
    return [
        ("Get", storage_pb2.GetRequest(id="m")),
        ("BatchGet", storage_pb2.BatchGetRequest(ids=["m", "absent"])),
        ("List", storage_pb2.ListRequest(session_id="s")),
        ("Search", storage_pb2.SearchRequest(query="saga")),
        ("Export", storage_pb2.ExportRequest()),
        ("GetSession", session_pb2.GetSessionRequest(session_id="s")),
        ("ListSessions", session_pb2.ListSessionsRequest()),
        ("GetFile", file_pb2.GetFileRequest(id="f")),
        ("ListFiles", file_pb2.ListFilesRequest()),
    ]


async def filled(rpcs: dict[str, Rpc]) -> str:
    """Store what the reads read; return the position."""
    for name, request in requests()[:5]:
        answer = await rpcs[name].call(request)
    position: str = answer.position
    return position


def requiring(request: Any, **wanted: Any) -> Any:
    """Return a copy of ``request`` with a consistency."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.consistency.CopyFrom(message_pb2.Consistency(**wanted))
    return copy


async def test_every_method_tells_its_position(dsn: str) -> None:
    last: WalPosition | None = None
    async with opened_plain(dsn) as backend, methods_of(backend) as rpcs:
        assert sorted(name for name, _ in requests()) == sorted(rpcs)
        assert [name for name, _ in reads()] == [rpc.name for rpc in rpcs.values() if rpc.reads]
        for name, request in requests():
            asked = request
            if rpcs[name].reads and last is not None:
                asked = requiring(request, at_least=last.encoded())
            position = decoded((await rpcs[name].call(asked)).position)
            assert last is None or position >= last, name
            last = position


async def test_position_of_no_match_and_of_each_stream_response(dsn: str) -> None:
    async with opened_plain(dsn) as backend, methods_of(backend) as rpcs:
        assert decoded((await rpcs["List"].call(storage_pb2.ListRequest(session_id="s"))).position)
        # Whatever is stored, nothing matches.
        none = storage_pb2.SearchRequest(query="-a a")
        assert decoded((await rpcs["Search"].call(none)).position)
        async with served(backend, Limits()) as server, server.stub() as stub:
            sent = [storage_pb2.BulkSaveRequest(sequence=n, messages=[message()]) for n in range(5)]
            told = [decoded(one.position) async for one in stub.BulkSave(iter(sent))]
            assert len(told) == 5
            assert told == sorted(told)
            exported = stub.Export(storage_pb2.ExportRequest(batch_size=1))
            assert len([decoded(one.position) async for one in exported]) == 5


async def test_hostile_positions_are_refused_by_every_read(dsn: str) -> None:
    async with opened_plain(dsn) as backend, methods_of(backend) as rpcs:
        here = decoded(await filled(rpcs))
        foreign = here._replace(system=here.system ^ 1).encoded()
        for name, request in reads():
            for bad in (
                "x",
                here.encoded()[:-1],
                here.encoded() + "A",
                "é" * 28,
                "A" * 28,
                foreign,
            ):
                with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
                    await rpcs[name].call(requiring(request, at_least=bad))
                assert list(result.refusal.fields) == ["consistency.at_least"], (name, bad)
                assert "\n" not in result.refusal.message
            for ahead in (
                here._replace(lsn=2**64 - 1),
                here._replace(timeline=2**32 - 1),
                here._replace(timeline=here.timeline + 1, lsn=0),
            ):
                with refused(grpc.StatusCode.UNAVAILABLE) as result:
                    await rpcs[name].call(requiring(request, at_least=ahead.encoded()))
                assert result.refusal.retry_after, name
            for reached in (
                {"at_least": ""},
                {"at_least": here.encoded()},
                {"at_least": here._replace(timeline=here.timeline - 1, lsn=2**64 - 1).encoded()},
                {"any_replica": True},
                {"latest": True},
            ):
                assert (await rpcs[name].call(requiring(request, **reached))).position, name


async def test_store_without_positions_checks_the_form_only(tmp_path: Any) -> None:
    async with opened(lambda: SQLiteStorage(tmp_path / "m.db")) as store, methods_of(store) as rpcs:
        assert await filled(rpcs) == ""
        foreign = WalPosition(2**64 - 1, 2**32 - 1, 2**64 - 1).encoded()
        for name, request in reads():
            answer = await rpcs[name].call(requiring(request, at_least=foreign))
            assert answer.position == "", name
            with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
                await rpcs[name].call(requiring(request, at_least=foreign[1:]))
            assert list(result.refusal.fields) == ["consistency.at_least"], name


# ------------------------------------------------------------------ tokens


async def _pages(rpcs: dict[str, Rpc], *wanted: dict[str, Any]) -> list[str]:
    """Read a session of four messages, one a page, each page with another consistency."""
    token, contents = "", []
    for one in wanted:
        request = storage_pb2.ListRequest(session_id="s", page_size=1, page_token=token)
        page = await rpcs["List"].call(requiring(request, **one) if one else request)
        contents += [found.content for found in page.messages]
        token = page.next_page_token
    return contents


async def test_pages_of_all_levels_follow_each_other(dsn: str) -> None:
    async with opened_plain(dsn) as backend, methods_of(backend) as rpcs:
        turn = [message(content=str(number)) for number in range(4)]
        stored = await rpcs["Append"].call(session_pb2.AppendRequest(session_id="s", messages=turn))
        levels: tuple[dict[str, Any], ...] = (
            {},
            {"latest": True},
            {"any_replica": True},
            {"at_least": stored.position},
        )
        for shift in range(4):
            order = levels[shift:] + levels[:shift]
            assert await _pages(rpcs, *order) == ["0", "1", "2", "3"]


async def test_token_outlives_a_move_of_the_data(dsn: str) -> None:
    """Its position is of another cluster: the next page is the latest state."""
    async with opened_plain(dsn) as backend, methods_of(backend) as rpcs:
        turn = [message(content=str(number)) for number in range(4)]
        await rpcs["Append"].call(session_pb2.AppendRequest(session_id="s", messages=turn))
        first = await rpcs["List"].call(storage_pb2.ListRequest(session_id="s", page_size=1))
        key = request_key("List", "s", False)
        at = first.messages[0]
        cursor = (at.timestamp.ToMicroseconds(), at.sequence)
        assert encode(key, cursor) == first.next_page_token
        here = decoded(first.position)
        request = storage_pb2.ListRequest(session_id="s", page_size=1)
        request.page_token = encode(key, cursor, here._replace(system=here.system ^ 1))
        for wanted in ({"any_replica": True}, {"at_least": first.position}):
            page = await rpcs["List"].call(requiring(request, **wanted))
            assert [one.content for one in page.messages] == ["1"]
        # A page that was read from a later timeline than this server knows is not older here.
        request.page_token = encode(key, cursor, here._replace(timeline=here.timeline + 1))
        with refused(grpc.StatusCode.UNAVAILABLE):
            await rpcs["List"].call(requiring(request, any_replica=True))
        assert (await rpcs["List"].call(request)).messages[0].content == "1"


# ------------------------------------------------------------------ servers that tell none


@pytest.mark.parametrize(
    "function", ["pg_control_system()", "pg_current_wal_flush_lsn()", "pg_walfile_name(pg_lsn)"]
)
async def test_role_without_privileges_gets_no_positions(function: str) -> None:
    name, dsn = await new_database()
    try:
        await execute(dsn, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        await execute(dsn, f"CREATE ROLE {name} LOGIN; GRANT ALL ON DATABASE {name} TO {name}")
        await execute(dsn, f"GRANT ALL ON SCHEMA public TO {name}")
        dsn = dsn.replace("postgres@", f"{name}@", 1)
        async with opened_plain(dsn) as backend, methods_of(backend) as rpcs:
            for method, request in requests():
                asked = request
                if rpcs[method].reads:
                    asked = requiring(request, at_least=WalPosition(1, 9, 9).encoded())
                assert (await rpcs[method].call(asked)).position == "", method
    finally:
        await execute(server_dsn(), f"DROP DATABASE {name} WITH (FORCE)")
        await execute(server_dsn(), f"DROP ROLE IF EXISTS {name}")


async def test_connection_that_ends_after_commit(dsn: str) -> None:
    """The write is acknowledged: it is committed, although its position is not known."""
    async with opened_plain(dsn, pool_max=1) as backend:
        await backend.save(lone("m-0"))
        commit = backend._pool.commits.commit_write

        async def end_after_commit(connection: Any, then: str = "") -> None:
            await commit(connection, then)
            connection.terminate()

        backend._pool.commits.commit_write = end_after_commit  # type: ignore[method-assign]
        saved = await as_call(lambda: backend.save(lone("m-1")))
        assert saved.position is None
        assert (await backend.get("m-1")).id == "m-1"


# ------------------------------------------------------------------ the cutover

_WAITS = (
    "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'messages'::regclass AND NOT granted)"
)


async def test_read_that_began_before_the_cutover_tells_no_position(dsn: str) -> None:
    """A write that is acknowledged meanwhile has none, and this one may be older."""
    async with opened_plain(dsn) as plain:
        await plain.save(draft("m-1"))
    async with opened(lambda: target_on(dsn)) as target:
        locker = await asyncpg.connect(dsn)
        try:
            async with locker.transaction():
                await locker.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
                early = asyncio.create_task(as_call(lambda: target.get("m-1")))
                await until_async(lambda: locker.fetchval(_WAITS))
                target.serve_alone()  # type: ignore[attr-defined]
            assert (await early).position is None
        finally:
            await locker.close()
        late = await as_call(lambda: target.get("m-1"))
        assert late.position is not None
        assert (await as_call(lambda: target.get("m-1"), at_least(late.position))).position
