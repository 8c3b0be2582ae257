"""Forwarded calls equal direct ones: answers, errors, headers, deadlines, cancellation, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import migration_pb2, storage_pb2
from sagastore_server.interfaces.access import AccessControl, Caller, Role
from sagastore_server.interfaces.audit import Audit
from sagastore_server.interfaces.call_context import CallContext
from sagastore_server.interfaces.errors import UnauthenticatedError
from sagastore_server.interfaces.tracing import NO_TRACER, Span, Tracer
from sagastore_server.rpc import forwarding
from sagastore_server.rpc.admission import MIB, Limits
from sagastore_server.rpc.forwarded_calls import mark
from sagastore_server.rpc.holder_connection import Target
from sagastore_server.rpc.server import ServerOptions
from sagastore_server.storage.errors import Blocker, PreconditionError, UnavailableError
from sagastore_server.storage.model import BulkResult, NewMessage, OnConflict
from tests.e2e.scripted import NOTHING
from tests.forwarding.pair import STORE, Node, Pair, pair
from tests.support.messages import batch, message
from tests.support.ports import taken_port
from tests.support.rpc_errors import Refusal, refusal_of
from tests.support.waiting import until


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse calls sooner that have no holder."""
    monkeypatch.setattr(forwarding, "HOLD_SECONDS", 0.3)


async def refused(call: Any) -> Refusal:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


async def saved(node: Node, **fields: Any) -> str:
    answer = await node.storage.Save(storage_pb2.SaveRequest(message=message(**fields)))
    return str(answer.id)


async def read_all(call: Any) -> list[Any]:
    return [answer async for answer in call]


# ---------------------------------------------------------------- unary calls


async def test_answers_of_both_servers_are_equal(both: Pair) -> None:
    id = await saved(both.forwarder, content="é" * 100_000)
    request = storage_pb2.GetRequest(id=id)
    found = await both.forwarder.storage.Get(request)
    assert found == await both.holder.storage.Get(request)
    assert both.forwarding.counts.forwarded == 2


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: ("Get", storage_pb2.GetRequest(id="absent")),
        lambda: ("Get", storage_pb2.GetRequest()),
        lambda: ("Save", storage_pb2.SaveRequest(message=message(provider="", role="x" * 40))),
        lambda: ("Save", storage_pb2.SaveRequest(message=message(), if_revision=7)),
        lambda: ("Search", storage_pb2.SearchRequest(page_token="no token")),
    ],
)
async def test_errors_of_both_servers_are_equal(both: Pair, request_of: Any) -> None:
    method, request = request_of()
    headers = (("x-request-id", "the-call"),)
    found = [
        await refused(getattr(node.storage, method)(request, metadata=headers))
        for node in (both.forwarder, both.holder)
    ]
    assert found[0] == found[1]
    assert found[0].reference == "the-call"


async def test_blockers_are_passed_on(both: Pair) -> None:
    both.holder.control.error = PreconditionError((Blocker("JOURNAL_BEHIND", "3 changes wait"),))
    request = migration_pb2.ChangePhaseRequest(phase=migration_pb2.PHASE_READ_POSTGRES)
    refusal = await refused(both.forwarder.migration.ChangePhase(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BLOCKED")
    assert refusal.message == "3 changes wait"


async def test_undecodable_request_is_refused_by_the_holder(both: Pair) -> None:
    for node in (both.forwarder, both.holder):
        call: Any = node.channel.unary_unary("/sagastore.v1.StorageService/Get")
        refusal = await refused(call(b"\x0a\x02\xff\xfe"))
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.fields


async def test_too_large_request_is_refused_before_it_is_forwarded() -> None:
    async with pair(forwarder=ServerOptions(Limits(max_request_bytes=8 * MIB))) as both:
        request = storage_pb2.GetRequest(id="x" * 200_000)
        refusal = await refused(both.forwarder.storage.Get(request))
        assert refusal.reason == "REQUEST_TOO_LARGE"
        assert both.forwarding.counts.forwarded == 0


async def test_deadline_is_passed_on(both: Pair) -> None:
    request = storage_pb2.SaveRequest(message=message(), durability=storage_pb2.DURABILITY_BOTH)
    await both.forwarder.storage.Save(request, timeout=30)
    await both.forwarder.storage.Save(request, timeout=300)
    first, second = both.holder.backend.within
    assert first is not None
    assert second is not None
    # gRPC rounds a time limit up, to about a hundredth of it.
    assert 0 < first < 31 < second < 310


class _Held:
    """Replaces ``save`` of a backend by one that never returns."""

    def __init__(self, node: Node) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        node.backend.save = self  # type: ignore[method-assign, assignment]

    async def __call__(self, *_: Any) -> Any:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


async def test_cancelled_call_is_cancelled_at_the_holder(both: Pair) -> None:
    held = _Held(both.holder)
    call = both.forwarder.storage.Save(storage_pb2.SaveRequest(message=message()))
    waiting = asyncio.ensure_future(call)
    await held.begun.wait()
    call.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await held.cancelled.wait()
    await until(lambda: not both.forwarder.server.calls_in_progress)


async def test_expired_call_ends_at_both_servers(both: Pair) -> None:
    held = _Held(both.holder)
    request = storage_pb2.SaveRequest(message=message())
    with pytest.raises(aio.AioRpcError) as caught:
        await both.forwarder.storage.Save(request, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not both.forwarder.server.calls_in_progress)
    await until(lambda: held.cancelled.is_set() or not held.begun.is_set())


# ---------------------------------------------------------------- callers


class _Tokens(AccessControl):
    """Knows one token."""

    is_open = False

    def caller(self, token: str | None, certificate_names: Sequence[str]) -> Caller:
        if token != "secret":
            raise UnauthenticatedError("unknown token")
        return Caller("web", Role.WRITER, "123456789abc")


class _Ends(Audit):
    """Keeps the calls that have ended."""

    def __init__(self) -> None:
        self.calls: list[CallContext] = []

    def ended(self, call: CallContext, code: str) -> None:
        self.calls.append(call)


async def test_holder_decides_about_the_token_of_the_caller() -> None:
    ends = _Ends()
    async with pair(ServerOptions(access=_Tokens(), audit=ends)) as both:
        storage = both.forwarder.storage
        request = storage_pb2.SaveRequest(message=message())
        refusal = await refused(storage.Save(request))
        assert (refusal.reason, refusal.message) == ("UNAUTHENTICATED", "unknown token")
        await storage.Save(request, metadata=(("authorization", "Bearer secret"),))
        call = ends.calls[-1]
        assert call.caller == "web"
        assert call.client.startswith("ipv4:127.0.0.1:")
        assert call.client != call.peer


async def test_forwarder_decides_about_the_token_first() -> None:
    async with pair(forwarder=ServerOptions(access=_Tokens())) as both:
        refusal = await refused(both.forwarder.storage.Get(storage_pb2.GetRequest(id="x")))
        assert refusal.reason == "UNAUTHENTICATED"
        assert both.forwarding.counts.forwarded == 0


class _Headers(Tracer):
    """Keeps the headers of the calls; is traced itself if it has headers."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self.own = own
        self.seen: list[Mapping[str, str]] = []

    def call(self, metadata: Mapping[str, str]) -> AbstractContextManager[Span]:
        self.seen.append(metadata)
        return NO_TRACER.call(metadata)

    def headers(self) -> Mapping[str, str]:
        return self.own


@pytest.mark.parametrize("own", [{}, {"traceparent": "00-of-the-forwarder"}])
async def test_headers_and_trace_context_are_passed_on(own: dict[str, str]) -> None:
    holder, forwarder = _Headers({}), _Headers(own)
    async with pair(ServerOptions(tracer=holder), ServerOptions(tracer=forwarder)) as both:
        headers = (("traceparent", "00-of-the-client"), ("x-request-id", "42"), ("x-more", "1"))
        await refused(both.forwarder.storage.Get(storage_pb2.GetRequest(id="x"), metadata=headers))
        (seen,) = holder.seen
        assert seen["traceparent"] == own.get("traceparent", "00-of-the-client")
        assert (seen["x-request-id"], seen["x-more"]) == ("42", "1")


# ---------------------------------------------------------------- the right holder


async def test_forwarder_accepts_no_forwarded_call(both: Pair) -> None:
    refusal = await refused(
        both.forwarder.storage.Get(storage_pb2.GetRequest(id="x"), metadata=(mark("", "me"),))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "FORWARDED_TWICE")


@pytest.mark.usefixtures("impatient")
async def test_chain_of_forwarders_is_refused(both: Pair) -> None:
    async with pair(connected=False) as other:
        target = Target(both.forwarder.address, "")
        other.forwarding.set_target(target)
        await until(lambda: "forwards its calls" in other.forwarding.state().detail)
        refusal = await refused(other.forwarder.storage.Get(storage_pb2.GetRequest(id="x")))
        assert refusal.reason == "HOLDER_UNREACHABLE"
        assert both.forwarder.address in refusal.message
        assert not other.forwarding.state().is_serving
        assert other.forwarding.counts.unreachable == 1


@pytest.mark.usefixtures("impatient")
async def test_holder_of_another_store_is_refused() -> None:
    async with pair(connected=False) as both:
        both.connect("store-2")
        await until(lambda: "another store" in both.forwarding.state().detail)
        refusal = await refused(both.forwarder.storage.Get(storage_pb2.GetRequest(id="x")))
        assert refusal.reason == "HOLDER_UNREACHABLE"
        refusal = await refused(
            both.holder.storage.Get(
                storage_pb2.GetRequest(id="x"), metadata=(mark("store-2", "me"),)
            )
        )
        assert refusal.reason == "WRONG_STORE"
        both.connect(STORE)
        await until(lambda: both.forwarding.state().is_serving)
        await saved(both.forwarder)


# ---------------------------------------------------------------- streams


async def test_bulk_save_and_export_through_the_forwarder(both: Pair) -> None:
    batches = [batch(n, *(message(id=f"{n}-{m}") for m in range(50))) for n in range(40)]
    answers = await read_all(both.forwarder.storage.BulkSave(iter(batches)))
    assert [(answer.sequence, answer.saved) for answer in answers] == [(n, 50) for n in range(40)]
    exported = [
        await read_all(node.storage.Export(storage_pb2.ExportRequest(batch_size=300)))
        for node in (both.forwarder, both.holder)
    ]
    assert exported[0] == exported[1]
    assert sum(len(answer.messages) for answer in exported[0]) == 2000


async def test_invalid_batch_ends_the_stream_with_its_error(both: Pair) -> None:
    batches = [batch(1, message()), batch(2, message()), batch(3)]
    found = []
    for node in (both.forwarder, both.holder):
        call = node.storage.BulkSave(iter(batches))
        assert [(await call.read()).sequence for _ in range(2)] == [1, 2]
        found.append((await refused(call.read()))._replace(reference=""))
    assert found[0] == found[1]
    assert found[0].code is grpc.StatusCode.INVALID_ARGUMENT


async def test_silent_client_of_a_stream_is_refused_by_the_forwarder() -> None:
    async with pair(forwarder=ServerOptions(Limits(stall_timeout=0.2))) as both:
        call = both.forwarder.storage.BulkSave()
        await call.write(batch(1, message()))
        assert (await call.read()).sequence == 1
        refusal = await refused(call.read())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "CLIENT_SILENT")
        await until(lambda: not both.holder.server.calls_in_progress)


async def test_cancelled_watch_ends_at_the_holder(both: Pair) -> None:
    call = both.forwarder.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    assert (await call.read()).migration.epoch == 7
    call.cancel()
    await until(lambda: both.holder.control.ended == 1)
    assert both.forwarder.control.ended == 0


async def test_drain_of_the_forwarder_ends_its_streams(both: Pair) -> None:
    watch = both.forwarder.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    verify = both.forwarder.migration.Verify(migration_pb2.VerifyRequest())
    for call in (watch, verify):
        await call.read()
    drain = asyncio.create_task(both.forwarder.server.drain(0.4))
    for call in (watch, verify):
        refusal = await refused(call.read())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert await drain
    await until(lambda: both.holder.control.ended == 2)


async def test_forwarder_reads_no_further_ahead_than_the_holder(both: Pair) -> None:
    """The client sends without end, and the holder does not get on."""
    going_on = asyncio.Event()
    stored = both.holder.backend.bulk_save

    async def bulk_save(
        drafts: Sequence[NewMessage], on_conflict: OnConflict, _: Any
    ) -> BulkResult:
        await going_on.wait()
        return await stored(drafts, on_conflict)

    both.holder.backend.bulk_save = bulk_save  # type: ignore[method-assign, assignment]
    sent = 0

    async def requests() -> AsyncIterator[storage_pb2.BulkSaveRequest]:
        nonlocal sent
        while not going_on.is_set():
            sent += 1
            yield batch(sent, message(content="x" * 500_000))

    call = both.forwarder.storage.BulkSave(requests())
    # What fits into the windows of both connections, and what both servers read ahead.
    await until(lambda: sent >= 5)
    quiet, before = 0, -1
    while quiet < 20:
        quiet = quiet + 1 if sent == before else 0
        before = sent
        await asyncio.sleep(0.01)
    assert both.forwarder.server.admission.requests.used < 10 * MIB
    assert sent < 20
    going_on.set()
    answers = await read_all(call)
    assert [answer.sequence for answer in answers] == list(range(1, sent + 1))


# ---------------------------------------------------------------- waiting, the end of forwarding


@pytest.mark.usefixtures("impatient")
async def test_call_without_a_holder_is_refused_in_time() -> None:
    async with pair(connected=False) as both:
        refusal = await refused(both.forwarder.storage.Get(storage_pb2.GetRequest(id="x")))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "HOLDER_UNREACHABLE",
        )
        stream = both.forwarder.storage.Export(storage_pb2.ExportRequest())
        assert (await refused(stream.read())).reason == "HOLDER_UNREACHABLE"
        assert both.forwarding.counts.unreachable == 2


async def test_waiting_calls_are_forwarded_once_the_holder_is_known() -> None:
    async with pair(connected=False) as both:
        calls = [asyncio.create_task(saved(both.forwarder)) for _ in range(5)]
        await until(lambda: both.forwarder.server.calls_in_progress == 5)
        both.connect()
        assert len(await asyncio.gather(*calls)) == 5
        assert both.forwarding.counts.forwarded == 5


async def test_waiting_calls_are_answered_here_once_forwarding_ends() -> None:
    async with pair(connected=False) as both:
        call = asyncio.create_task(saved(both.forwarder))
        export = both.forwarder.storage.Export(storage_pb2.ExportRequest())
        await until(lambda: both.forwarder.server.calls_in_progress == 2)
        both.forwarder.server.serve_here()
        id = await call
        await read_all(export)
        assert both.forwarding.counts.forwarded == 0
        assert (await both.holder.storage.Get(storage_pb2.GetRequest(id=id))).message.id == id


async def test_calls_refused_by_a_draining_holder_wait(both: Pair) -> None:
    await both.holder.server.drain(0)
    call = asyncio.create_task(saved(both.forwarder))
    await until(lambda: not both.forwarding.state().is_serving)
    assert not call.done()
    both.forwarder.server.serve_here()
    await call


async def test_streams_go_on_at_the_holder_when_forwarding_ends(both: Pair) -> None:
    call = both.forwarder.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    await call.read()
    both.forwarder.control.answer = NOTHING
    both.forwarder.server.serve_here()
    both.holder.control.more.set()
    assert (await call.read()).migration.epoch == 7
    await both.holder.server.drain(0)
    assert (await refused(call.read())).reason == "SERVER_DRAINING"
    again = both.forwarder.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    assert (await again.read()).migration.epoch == NOTHING.epoch


async def test_lost_connection_leaves_the_outcome_open(both: Pair) -> None:
    held = _Held(both.holder)
    call = asyncio.ensure_future(
        both.forwarder.storage.Save(storage_pb2.SaveRequest(message=message()))
    )
    await held.begun.wait()
    stopping = asyncio.create_task(both.holder.server.stop())
    refusal = await refused(call)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "HOLDER_LOST")
    assert both.forwarding.counts.lost == 1
    await stopping


async def test_calls_of_a_former_holder_end_when_another_one_follows(both: Pair) -> None:
    held = _Held(both.holder)
    async with pair() as other:
        call = asyncio.ensure_future(
            both.forwarder.storage.Save(storage_pb2.SaveRequest(message=message()))
        )
        await held.begun.wait()
        both.forwarding.set_target(Target(other.holder.address, STORE))
        assert (await refused(call)).reason == "HOLDER_LOST"
        await saved(both.forwarder)


async def test_probe_goes_on_when_the_connection_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The former server does not answer, so its probe is in progress."""
    monkeypatch.setattr(forwarding, "RETIRE_SECONDS", 0.0)
    async with pair(connected=False) as both:
        with taken_port() as silent:
            both.forwarding.set_target(Target(f"127.0.0.1:{silent}", STORE))
            connection = both.forwarding._connection
            assert connection is not None
            connecting = grpc.ChannelConnectivity.CONNECTING
            await until(lambda: connection._channel.get_state() is connecting)
            await both.connected()
        await saved(both.forwarder)
        assert not both.forwarding._supervisor.failing


async def test_health_follows_the_holder(both: Pair) -> None:
    health = health_pb2_grpc.HealthStub(both.forwarder.channel)

    async def status(service: str = "") -> int:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)

    serving = health_pb2.HealthCheckResponse.SERVING
    assert await status() != serving
    both.forwarder.server.set_forwarding_health(answers=True, serving=False)
    assert await status() != serving
    assert await status("sagastore.v1.MigrationService") == serving
    both.forwarder.server.set_forwarding_health(answers=True, serving=True)
    assert await status() == serving
    both.forwarder.server.set_forwarding_health(answers=False, serving=False)
    assert await status("sagastore.v1.MigrationService") != serving
    both.forwarder.server.serve_here()
    assert await status() == serving


async def test_holder_whose_store_is_down_still_gets_calls(both: Pair) -> None:
    await both.holder.server.set_ready(False)
    await until(lambda: not both.forwarding.state().is_serving)
    both.holder.backend.error = UnavailableError("the disk is gone")
    refusal = await refused(both.forwarder.storage.Save(storage_pb2.SaveRequest(message=message())))
    assert (refusal.reason, refusal.message) == ("STORE_UNAVAILABLE", "the disk is gone")
