"""Start, drain and stop of a server process, and the files that it leaves."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.conftest import ServerFactory
from tests.support.messages import batch, message
from tests.support.open_stream import OpenStream
from tests.support.rpc_errors import refused
from tests.support.server_process import ServerProcess


def stored(server: ServerProcess, *ids: str) -> bool:
    """Start the server again and expect the messages."""
    with server.restart().channel() as channel:
        found = StorageServiceStub(channel).BatchGet(storage_pb2.BatchGetRequest(ids=ids))
    return not found.missing_ids


def files_beside(database: Path) -> list[str]:
    """Return the names of the remaining SQLite side files."""
    return [name for name in ("-wal", "-shm") if Path(f"{database}{name}").exists()]


def test_drain_finishes_streams_and_refuses_new_calls(
    running_server: ServerProcess, channel: grpc.Channel
) -> None:
    storage, health = StorageServiceStub(channel), health_pb2_grpc.HealthStub(channel)
    first, second = message(), message()
    stream = OpenStream(storage)
    stream.store(first)

    running_server.ask_to_stop()
    assert running_server.wait_for_event("draining")["calls"] == 1
    with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        storage.Get(storage_pb2.GetRequest(id=first.id))
    assert caught.refusal.reason == "SERVER_DRAINING"
    assert caught.refusal.retry_after is not None
    for service in ("", "sagastore.v1.StorageService", "sagastore.v1.MigrationService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    stream.store(second)
    stream.finish()
    assert running_server.wait() == 0
    assert files_beside(running_server.sqlite) == []
    assert stored(running_server, first.id, second.id)


def test_drain_ends_open_stream_after_its_batch(server_process: ServerFactory) -> None:
    server = server_process("--drain-seconds", "1").start()
    with server.channel() as channel:
        one = message()
        stream = OpenStream(StorageServiceStub(channel))
        stream.store(one)
        server.ask_to_stop()
        with refused(grpc.StatusCode.UNAVAILABLE) as caught:
            stream.next_answer()
    assert caught.refusal.reason == "SERVER_DRAINING"
    assert server.wait() == 0
    assert "calls cut short" not in [event["event"] for event in server.events]
    assert files_beside(server.sqlite) == []
    assert stored(server, one.id)


def test_drain_does_not_wait_for_stalled_reader(
    server_process: ServerFactory,
) -> None:
    server = server_process("--drain-seconds", "1").start()
    with server.channel() as channel:
        storage = StorageServiceStub(channel)
        for _ in range(4):
            large = (message(content="x" * 100_000) for _ in range(50))
            list(storage.BulkSave(iter([batch(1, *large)])))
        answers = iter(storage.Export(storage_pb2.ExportRequest()))
        next(answers)
        assert server.terminate() == 0
    assert files_beside(server.sqlite) == []


def test_second_signal_ends_calls_at_once(server_process: ServerFactory) -> None:
    server = server_process("--drain-seconds", "3600").start()
    with server.channel() as channel:
        one = message()
        stream = OpenStream(StorageServiceStub(channel))
        stream.store(one)
        server.ask_to_stop()
        server.wait_for_event("draining")
        server.ask_to_stop()
        with pytest.raises(grpc.RpcError):
            stream.next_answer()
        assert server.wait() == 0
    server.wait_for_event("calls cut short")
    assert files_beside(server.sqlite) == []
    assert stored(server, one.id)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C cannot be sent to one process there")
def test_sigint_drains(running_server: ServerProcess) -> None:
    assert running_server._process is not None
    running_server._process.send_signal(signal.SIGINT)
    assert running_server.wait() == 0
    assert [event["event"] for event in running_server.events] == ["serving", "draining", "stopped"]


def test_second_server_on_a_file_reports_the_first(
    running_server: ServerProcess, server_process: ServerFactory
) -> None:
    second = server_process()
    second.spawn()
    assert second.wait() == 1
    (line,) = second.stderr
    assert str(running_server.sqlite) in line
    assert f"process {running_server.pid} " in line
    # The first server is not affected.
    with running_server.channel() as channel:
        StorageServiceStub(channel).Save(storage_pb2.SaveRequest(message=message()))


def test_port_in_use_is_refused(server_process: ServerFactory, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = server_process(sqlite=tmp_path / "new.db")
        server.address = f"127.0.0.1:{taken.getsockname()[1]}"
        server.spawn()
        assert server.wait() == 1
    (line,) = server.stderr
    assert server.address in line
    assert "in use" in line
    assert not server.sqlite.exists()


def test_port_of_another_server_is_refused(
    running_server: ServerProcess, server_process: ServerFactory, tmp_path: Path
) -> None:
    second = server_process(sqlite=tmp_path / "new.db")
    second.address = running_server.address
    second.spawn()
    assert second.wait() == 1
    assert len(second.stderr) == 1


def test_channel_reconnects_to_restarted_server(
    running_server: ServerProcess, channel: grpc.Channel
) -> None:
    storage, one = StorageServiceStub(channel), message()
    revision = storage.Save(storage_pb2.SaveRequest(message=one)).revision
    running_server.restart()
    found = storage.Get(storage_pb2.GetRequest(id=one.id), wait_for_ready=True).message
    assert found.revision == revision
    other = storage.Save(storage_pb2.SaveRequest(message=message()))
    assert other.revision > revision


def test_page_tokens_survive_a_restart(
    running_server: ServerProcess, channel: grpc.Channel
) -> None:
    storage = StorageServiceStub(channel)
    sent = [message(id=f"{n}", session_id="s") for n in range(4)]
    list(storage.BulkSave(iter([batch(1, *sent)])))
    page = storage.List(storage_pb2.ListRequest(session_id="s", page_size=3))
    search = storage_pb2.SearchRequest(query="saga", page_size=3)
    found = storage.Search(search)
    exported = next(iter(storage.Export(storage_pb2.ExportRequest(batch_size=3))))
    running_server.restart()

    rest = storage.List(
        storage_pb2.ListRequest(session_id="s", page_token=page.next_page_token),
        wait_for_ready=True,
    )
    assert len(rest.messages) == 1
    search.page_token = found.next_page_token
    assert len(storage.Search(search).results) == 1
    again = storage_pb2.ExportRequest(resume_token=exported.resume_token)
    assert [len(answer.messages) for answer in storage.Export(again)] == [1]
