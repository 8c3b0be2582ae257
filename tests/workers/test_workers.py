"""Several processes on one port: death, drain, limits and metrics of real workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from sagastore import AsyncClient, Message
from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.config.address import Address
from tests.support.messages import message
from tests.support.open_stream import OpenStream
from tests.support.rpc_errors import refusal_of
from tests.support.waiting import eventually, until
from tests.workers.conftest import ServiceFactory
from tests.workers.service import arguments_and_environment, is_running

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers need Linux")

_SAVES = 'grpc_server_call_started_total{grpc_method="sagastore.v1.StorageService/Save"}'
_SECRET = "a-password-in-the-environment"


async def save_until(client: AsyncClient, done: asyncio.Event, saved: list[str]) -> None:
    """Save messages one after the other; an error is raised."""
    while not done.is_set():
        saved.append((await client.save(Message(provider="openai", role="user", content="x"))).id)


def never_less(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Return the counters that have become less."""
    counted = ("_total", "_count", "_sum", "_bucket")
    return [
        name
        for name, value in before.items()
        if name.partition("{")[0].endswith(counted) and after.get(name, 0) < value
    ]


async def test_killed_worker_is_replaced_without_a_failed_call(service: ServiceFactory) -> None:
    server = await asyncio.to_thread(service().start)
    done, saved = asyncio.Event(), list[str]()
    async with AsyncClient(server.address) as client:
        calls = [asyncio.create_task(save_until(client, done, saved)) for _ in range(4)]
        await until(lambda: len(saved) > 50)
        before = await asyncio.to_thread(server.metrics)
        # The client has one connection, so one of these two deaths ends it.
        for number, pid in enumerate(server.started[:2], 3):
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(server.wait_for_replacement, number)
        enough = len(saved) + 50
        await until(lambda: len(saved) > enough)
        done.set()
        await asyncio.gather(*calls)
        found = await client.batch_get(saved[:1000])
    assert found.missing_ids == ()
    after = await asyncio.to_thread(server.metrics)
    assert never_less(before, after) == []
    # A killed worker takes the events since the last collection with it, not those before.
    assert after[_SAVES] >= before[_SAVES] + 50
    assert after["sagastore_worker_restarts_total"] == 2
    assert after['sagastore_task_failures_total{task="worker-1"}'] == 1
    assert {"TASK_FAILING"} == {
        finding["reason"] for finding in server.readiness().document["warnings"]
    }
    assert sum("was killed by SIGKILL" in line for line in server.stderr) == 2


def test_killed_supervising_process_leaves_no_worker_and_no_port(service: ServiceFactory) -> None:
    server = service().start()
    address, workers = Address.parse(server.address), server.started
    stopped = workers[0]
    os.kill(stopped, signal.SIGSTOP)  # A worker that hangs cannot end itself.
    try:
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not any(map(is_running, workers)))
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    server.wait()
    # The files of a process with several threads are closed with the last one, after its zombie.
    eventually(lambda: _is_free(address))


def _is_free(address: Address) -> bool:
    with suppress(OSError), socket.create_server((address.host, address.port)):
        return True
    return False


def test_drain_completes_streams_of_all_workers(service: ServiceFactory) -> None:
    server = service("--log-calls", env={"PGPASSWORD": _SECRET}).start()
    for pid in server.started:
        assert _SECRET not in arguments_and_environment(pid)
    with ExitStack() as stack:
        channels = [stack.enter_context(server.new_connection()) for _ in range(12)]
        for number in range(20):
            for channel in channels:
                StorageServiceStub(channel).Save(
                    storage_pb2.SaveRequest(message=message(content=f"message {number}"))
                )
        assert server.metrics()[_SAVES] == 240
        streams = [OpenStream(StorageServiceStub(channel)) for channel in channels]
        for stream in streams:
            stream.store(message())
        eventually(lambda: server.metrics()["sagastore_streams_open"] == 12)
        server.ask_to_stop()
        eventually(lambda: server.readiness().reasons == ["DRAINING"])
        eventually(lambda: _drains(channels[0]))
        for stream in streams:
            stream.finish()
    assert server.wait() == 0
    lines = server.lines()
    calls = [line for line in lines if line["event"] == "call"]
    assert len(calls) >= 240
    assert {line["worker"] for line in calls} == {1, 2}
    assert [line["event"] for line in lines if "worker" not in line] == [
        "serving",
        "draining",
        "stopped",
    ]


def _drains(channel: grpc.Channel) -> bool:
    try:
        StorageServiceStub(channel).Save(storage_pb2.SaveRequest(message=message()))
    except grpc.RpcError as exc:
        return refusal_of(exc).reason == "SERVER_DRAINING"
    return False


def test_limits_hold_for_all_workers_and_their_replacements(service: ServiceFactory) -> None:
    server = service("--max-connections", "6", "--max-calls", "7").start()
    metrics = server.metrics()
    assert metrics["sagastore_client_connections_limit"] == 6
    assert metrics["sagastore_calls_limit"] == 6  # Rounded down: three for each worker.
    assert metrics['sagastore_connections_limit{store="postgresql"}'] == 20
    with server.raw_connections(40) as connections:
        # gRPC speaks first on a connection that it accepts, and closes the others.
        accepted = [connection for connection in connections if connection.recv(1)]
        assert 0 < len(accepted) <= 6
    os.kill(server.started[0], signal.SIGTERM)
    server.wait_for_replacement(3)
    metrics = server.metrics()
    assert metrics["sagastore_worker_restarts_total"] == 1
    assert metrics['sagastore_task_failures_total{task="worker-1"}'] == 0
    assert metrics["sagastore_client_connections_limit"] == 6


def test_port_of_another_server_is_refused(service: ServiceFactory, dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        server = service("--listen", f"127.0.0.1:{port}")
        server.spawn(bare=True)
        assert server.wait() == 1
    (line,) = server.stderr
    assert line == (
        f"sagastore-server: cannot listen on 127.0.0.1:{port}: Address already in use; choose "
        "another address with --listen"
    )


def test_worker_that_cannot_start_ends_the_service_with_its_line(
    service: ServiceFactory, tmp_path: Path
) -> None:
    access = tmp_path / "access.toml"
    access.write_text("nonsense")
    server = service("--access", str(access))
    server.spawn()
    assert server.wait() == 1
    *started, line = server.stderr
    assert all('"worker started"' in one for one in started)
    assert line.startswith(f"sagastore-server: {access}: is not valid TOML")
    assert not any(map(is_running, server.started))


def test_workers_that_crash_at_once_end_the_service(service: ServiceFactory) -> None:
    server = service()
    server.spawn()
    for number in range(3):
        eventually(lambda count=number: len(server.started) > count)  # type: ignore[misc]
        os.kill(server.started[number], signal.SIGKILL)
    assert server.wait() == 1
    assert server.stderr[-1] == (
        "sagastore-server: worker processes end at once: the last one was killed by SIGKILL; see "
        "the log, then restart the server"
    )
    assert not any(map(is_running, server.started))


def test_second_signal_ends_all_workers_at_once(service: ServiceFactory) -> None:
    server = service("--drain-seconds", "3600").start()
    with server.new_connection() as channel:
        stream = OpenStream(StorageServiceStub(channel))
        stream.store(message())
        server.ask_to_stop()
        eventually(lambda: server.readiness().reasons == ["DRAINING"])
        server.ask_to_stop()
        assert server.wait() == 0
        with pytest.raises(grpc.RpcError):
            stream.next_answer()
