"""Metrics, and the HTTP server of the ops port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from sagastore import AlreadyExistsError, Client, Message
from sagastore.v1 import storage_pb2, storage_pb2_grpc
from sagastore_server.rpc.server import METHODS
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.telemetry.counters import CounterFamily, HistogramFamily
from sagastore_server.telemetry.metrics import OTHER, Metrics
from tests.support.ports import taken_port
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually
from tests.telemetry.ops import ON, get, ops_of, scrape

SERVICE = "sagastore.v1.StorageService"
ServerFactory = Callable[..., ServerProcess]


def started(method: str) -> str:
    return f'grpc_server_call_started_total{{grpc_method="{SERVICE}/{method}"}}'


def ended(method: str, status: str) -> str:
    labels = f'grpc_method="{SERVICE}/{method}",grpc_status="{status}"'
    return f"grpc_server_call_duration_seconds_count{{{labels}}}"


def test_calls_and_commits_are_counted(watched: ServerProcess) -> None:
    ops = ops_of(watched)
    before = scrape(ops)
    with Client(watched.address) as client:
        for number in range(3):
            client.save(Message("a", "user", "hello", id=f"c{number}"))
        client.bulk_save(Message("a", "user", "hi", id=f"b{number}") for number in range(9))
        with pytest.raises(AlreadyExistsError):
            client.save(Message("a", "user", "x", id="c0"), if_revision=0)
        assert client.get("c0").content == "hello"
    calls = {
        started("Save"): 4,
        ended("Save", "OK"): 3,
        ended("Save", "ALREADY_EXISTS"): 1,
        started("BulkSave"): 1,
        ended("BulkSave", "OK"): 1,
        ended("Get", "OK"): 1,
    }
    after: dict[str, float] = {}

    def increase(series: str) -> float:
        return after.get(series, 0.0) - before.get(series, 0.0)

    def counted() -> bool:
        after.update(scrape(ops))
        return all(increase(series) >= count for series, count in calls.items())

    # A call is counted as ended shortly after its caller has the response.
    eventually(counted)
    assert {series: increase(series) for series in calls} == calls
    assert increase('sagastore_group_commit_writes_sum{store="sqlite"}') == 5
    # The rejected save counts, because it touched a row.
    assert increase('sagastore_messages_written_total{store="sqlite"}') == 13
    commits = increase('sagastore_group_commit_duration_seconds_count{store="sqlite"}')
    assert 1 <= commits <= 5
    eventually(lambda: scrape(ops)['sagastore_messages{store="sqlite"}'] >= 12)


def test_every_method_has_a_series_from_the_start(watched: ServerProcess) -> None:
    series = scrape(ops_of(watched))
    for name in METHODS:
        assert f'grpc_server_call_started_total{{grpc_method="{name}"}}' in series
    assert len(METHODS) == 25


def test_labels_have_no_values_from_callers(watched: ServerProcess) -> None:
    with watched.channel() as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/Planted", request_serializer=None, response_deserializer=None
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=(("x-request-id", "planted-id"),), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert b"lanted" not in get(ops_of(watched), "/metrics").body
    metrics = Metrics("1")
    for number in range(100):
        metrics.call_started(f"made/Up{number}")
        metrics.call_ended(f"made/Up{number}", "OK", 0.1)
    assert (
        metrics.registry.get_sample_value(
            "grpc_server_call_duration_seconds_count", {"grpc_method": OTHER, "grpc_status": "OK"}
        )
        == 100
    )


async def test_task_failures_are_counted_from_zero() -> None:
    metrics = Metrics("1")
    supervisor = Supervisor(metrics, first_pause=0.001)
    ended = asyncio.Event()

    async def fail_twice() -> None:
        if failures() == 2:
            ended.set()
            return
        raise OSError("disk full")

    def failures() -> float | None:
        return metrics.registry.get_sample_value(
            "sagastore_task_failures_total", {"task": "access-watcher"}
        )

    supervisor.start("access-watcher", fail_twice)
    assert failures() == 0
    await ended.wait()
    assert failures() == 2


def test_open_streams_and_rejected_calls_are_counted(server_process: ServerFactory) -> None:
    server = server_process("--max-streams", "1", env=ON).start()
    ops = ops_of(server)
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(server.channel())
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        end = threading.Event()
        stack.callback(end.set)
        call = stub.BulkSave(_waiting(end))
        eventually(lambda: scrape(ops)["sagastore_streams_open"] == 1)
        assert scrape(ops)["sagastore_streams_limit"] == 1
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Export(storage_pb2.ExportRequest()))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert scrape(ops)['sagastore_calls_shed_total{reason="OVERLOADED"}'] >= 1
        call.cancel()
        eventually(lambda: scrape(ops)["sagastore_streams_open"] == 0)
        # gRPC reports the cancellation and the end of the requests in either order.
        either = [ended("BulkSave", code) for code in ("CANCELLED", "OK")]
        eventually(lambda: sum(scrape(ops).get(name, 0) for name in either) == 1)


def test_certificate_expiry_is_exported_with_tls_only(watched: ServerProcess) -> None:
    assert "sagastore_tls_certificate_end_timestamp_seconds" not in scrape(ops_of(watched))


def test_ops_server_rejects_other_pages_and_methods(watched: ServerProcess) -> None:
    ops = ops_of(watched)
    assert get(ops, "/").status == 404
    assert b"/metrics, /livez, /readyz" in get(ops, "/").body
    assert get(ops, "/metrics", "POST").status == 501
    assert get(ops, "/metrics", "HEAD") == (200, b"")


def test_occupied_default_port_disables_metrics(server_process: ServerFactory) -> None:
    with contextlib.ExitStack() as stack:

        def occupied() -> bool:
            # A server of another test that fails to start has it for a moment.
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", 9464)))
                return True
            return False

        # Another server of this machine may keep it, which serves the purpose.
        with contextlib.suppress(TimeoutError):
            eventually(occupied, within=10)
        server = server_process(env={"SAGASTORE_OPS_LISTEN": ""}).start()
        (line,) = [event for event in server.events if event["event"] == "no metrics"]
        assert line["level"] == "warning"
        assert "cannot listen on 127.0.0.1:9464: Address already in use" in line["reason"]
        assert server.wait_for_event("serving")["ops"] == "off"
        with Client(server.address) as client:
            client.save(Message("a", "user", "hello"))


def test_occupied_configured_port_fails_the_start(server_process: ServerFactory) -> None:
    with taken_port() as port:
        server = server_process("--ops-listen", f"127.0.0.1:{port}")
        server.spawn()
        assert server.wait() == 1
    (line,) = server.stderr
    assert line == (
        f"sagastore-server: cannot listen on 127.0.0.1:{port} for metrics (ops_listen): "
        "Address already in use; choose another address, or off"
    )


def test_public_ops_address_needs_a_decision(server_process: ServerFactory) -> None:
    server = server_process("--ops-listen", "0.0.0.0:0")
    server.spawn()
    assert server.wait() == 1
    (line,) = server.stderr
    assert line.startswith("sagastore-server: ops_listen 0.0.0.0:0 can be reached from other")
    for option in ("--ops-allow-insecure", "--allow-insecure"):
        server = server_process("--ops-listen", "0.0.0.0:0", option).start()
        assert get(ops_of(server), "/livez").status == 200
        assert server.terminate() == 0


def test_ops_port_can_be_disabled(running_server: ServerProcess) -> None:
    assert running_server.wait_for_event("serving")["ops"] == "off"


def _waiting(end: threading.Event) -> Iterator[storage_pb2.BulkSaveRequest]:
    """Send nothing until ``end`` is set."""
    end.wait()
    yield from ()


def test_histogram_equals_that_of_prometheus_client() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bounds = (0.001, 0.25, 1, 10)
    tallies = HistogramFamily("h", "text", bounds, ["label"])
    counts = CounterFamily("c", "text", ["label"])
    ours.register(tallies)
    ours.register(counts)
    histogram = Histogram("h", "text", ["label"], buckets=bounds, registry=theirs).labels("x")
    counter = Counter("c", "text", ["label"], registry=theirs).labels("x")
    tally, count = tallies.labels("x"), counts.labels("x")
    for value in (0.0, 0.001, 0.0011, 0.25, 0.5, 1, 10, 10.5, 1000):
        tally.observe(value)
        histogram.observe(value)
        count.value += 2
        counter.inc(2)
    library = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == library
