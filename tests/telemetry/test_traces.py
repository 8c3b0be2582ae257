"""Traces, as a collector receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from sagastore import AsyncClient, Client, InvalidArgumentError, Message, NotFoundError
from sagastore.v1 import storage_pb2, storage_pb2_grpc
from tests.support.ports import reserved_port
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess, clean_environment
from tests.telemetry.collector import Collector, attributes

ServerFactory = Callable[..., ServerProcess]
SERVICE = "sagastore.v1.StorageService"
SECRET = "planted-4f1c"
SERVER, CLIENT = 2, 3
"""Span kinds by their number in the protocol."""
ERROR = 2


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Run a collector for all tests of this module."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Run a server that traces only what its callers trace."""
    server = ServerProcess(tmp_path_factory.mktemp("traced") / "sagastore.db", env=to(collector))
    with closing(server):
        yield server.start()


def to(collector: Collector, share: float = 0.0) -> dict[str, str]:
    """Return the environment of a server that exports its spans immediately."""
    return {
        "SAGASTORE_OTLP_ENDPOINT": collector.endpoint,
        "SAGASTORE_TRACE_SHARE": str(share),
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }


def tracer() -> trace.Tracer:
    return TracerProvider().get_tracer("test")


def test_call_belongs_to_the_trace_of_its_caller(
    traced: ServerProcess, collector: Collector
) -> None:
    with Client(traced.address) as client, tracer().start_as_current_span("work") as outer:
        client.save(Message("a", "user", SECRET, id="m1"))
        assert client.get("m1").content == SECRET
        assert list(client.search(SECRET))
        with pytest.raises(NotFoundError):
            client.get("m2")
    ids = outer.get_span_context()
    saved = collector.wait_for(f"{SERVICE}/Save", ids.trace_id)
    assert int.from_bytes(saved.parent_span_id) == ids.span_id
    assert saved.kind == SERVER
    assert attributes(saved) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Save",
        "rpc.grpc.status_code": 0,
    }
    commit = collector.wait_for("sqlite.commit", ids.trace_id)
    assert (commit.parent_span_id, commit.kind) == (saved.span_id, CLIENT)
    assert attributes(commit) == {"db.system.name": "sqlite"}
    read = collector.wait_for("sqlite.read", ids.trace_id)
    got = collector.wait_for(f"{SERVICE}/Get", ids.trace_id, status=0)
    assert read.parent_span_id == got.span_id
    collector.wait_for(f"{SERVICE}/Search", ids.trace_id)
    missing = collector.wait_for(f"{SERVICE}/Get", ids.trace_id, status=5)
    assert missing.status.code != ERROR  # Not the server's fault.
    assert collector.resource()["service.name"] == "sagastore"
    everything = b"".join(request.SerializeToString() for request in collector.requests)
    assert SECRET.encode() not in everything
    assert b"SELECT" not in everything


async def test_async_client_sends_its_trace_context(
    traced: ServerProcess, collector: Collector
) -> None:
    state = TraceState([("vendor", "x")])
    with tracer().start_as_current_span("work") as outer:
        there = outer.get_span_context()
        context = SpanContext(there.trace_id, there.span_id, True, TraceFlags(1), state)
        with trace.use_span(NonRecordingSpan(context)):
            async with AsyncClient(traced.address) as client:
                await client.save(Message("a", "user", "hello"))
    saved = collector.wait_for(f"{SERVICE}/Save", there.trace_id)
    assert saved.trace_state == "vendor=x"


def test_unsampled_caller_is_not_traced(traced: ServerProcess, collector: Collector) -> None:
    unsampled = TracerProvider(ALWAYS_OFF).get_tracer("test")
    with Client(traced.address) as client:
        with unsampled.start_as_current_span("work") as silent:
            client.save(Message("a", "user", "hello"))
        client.save(
            Message("a", "user", "hello")
        )  # Without trace context; the share of these is 0.
        with tracer().start_as_current_span("work") as heard:
            client.save(Message("a", "user", "hello"))
    collector.wait_for(f"{SERVICE}/Save", heard.get_span_context().trace_id)
    traces = {int.from_bytes(span.trace_id) for span in collector.spans}
    assert silent.get_span_context().trace_id not in traces
    assert not [span for span in collector.spans if not span.parent_span_id]


def test_invalid_trace_context_is_ignored(traced: ServerProcess) -> None:
    with traced.channel() as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        for header in ("", "x", "00-0-0-0", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01", "é"):
            key = "traceparent" if header.isascii() else "traceparent-bin"
            with pytest.raises(grpc.RpcError) as caught:
                stub.Get(
                    storage_pb2.GetRequest(id="none"),
                    metadata=((key, header if header.isascii() else header.encode()),),
                    timeout=60,
                )
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_postgresql_spans_are_exported_at_the_end(tmp_path: Path) -> None:
    async with fresh_schema() as dsn:
        with Collector() as collector:
            server = ServerProcess(tmp_path / "unused", env=to(collector, 1.0), postgres=dsn)
            with closing(server):
                async with AsyncClient(server.start().address) as client:
                    await client.save(Message("a", "user", "hello", id="p1"))
                    await client.get("p1")
                    with pytest.raises(InvalidArgumentError):
                        await client.get("x" * 1000)
                # The remaining spans are exported at the end.
                assert server.terminate() == 0
            commit = collector.wait_for("postgresql.commit")
            assert attributes(commit) == {"db.system.name": "postgresql"}
            assert any(span.span_id == commit.parent_span_id for span in collector.spans)
            collector.wait_for("postgresql.read")


def test_unavailable_collector_affects_no_call(server_process: ServerFactory) -> None:
    with reserved_port() as port:
        away = f"http://name:{SECRET}@127.0.0.1:{port}"
        server = server_process(env={"SAGASTORE_OTLP_ENDPOINT": away}).start()
        with Client(server.address) as client:
            client.save(Message("a", "user", "hello"))
        assert server.terminate() == 0
    assert SECRET not in "\n".join(server.stderr)
    assert "Traceback" not in "\n".join(server.stderr)


def test_missing_extra_fails_the_start(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None; from sagastore_server.cli import main"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{script}; main.main()", "serve", "--listen", "127.0.0.1:0"],
        env=clean_environment(tmp_path)
        | {"SAGASTORE_OTLP_ENDPOINT": "http://127.0.0.1:1", "SAGASTORE_OPS_LISTEN": "off"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "pip install 'sagastore-server[tracing]'" in line


def test_client_does_not_load_opentelemetry() -> None:
    script = "import sys, sagastore; from sagastore._trace import trace_headers as of; print(of())"
    result = subprocess.run(
        [sys.executable, "-c", f"{script}; print('opentelemetry' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert result.stdout.split() == ["()", "False"]
