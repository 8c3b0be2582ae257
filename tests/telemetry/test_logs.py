"""Logs: the id of the call in each line, and no secrets or content."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from sagastore import AsyncClient, InternalError, Message, NotFoundError, Phase, SagaStoreError
from sagastore.cli.failures import explain
from sagastore.v1 import storage_pb2, storage_pb2_grpc
from sagastore_server.interfaces import call_context
from sagastore_server.security.access_rules import digest_of
from sagastore_server.telemetry import logs
from tests.support.migration_control import go_to
from tests.support.postgres import fresh_schema
from tests.support.rpc_errors import refusal_of
from tests.support.server_process import ServerProcess
from tests.telemetry.memory_log import lines, logging_to_memory

ServerFactory = Callable[..., ServerProcess]
PLANTED = "planted0f3c"
"""Part of every value that must not be in a log."""


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logging_to_memory("debug") as stream:
        yield stream


def test_line_within_a_call_has_its_id(log: io.StringIO) -> None:
    async def serve(named: str) -> str:
        call = call_context.begin("a.Service/Method")
        call.read_id = lambda: named
        logging.getLogger("some.library").warning("from a library")
        structlog.get_logger("ours").info("from us", more=1)
        await asyncio.create_task(_later())
        call.code = "OK"
        logging.getLogger("some.library").warning("when it has ended")
        return call.id

    async def _later() -> None:
        logging.getLogger("some.library").info("from a task of the call")

    logging.getLogger("some.library").warning("outside of any")
    given = asyncio.run(serve("my-id"))
    made = asyncio.run(serve(""))
    assert given == "my-id"
    assert len(made) == 16
    found = [(line["event"], line.get("call")) for line in lines(log)]
    assert ("outside of any", None) in found
    for name in (given, made):
        for event in ("from a library", "from us", "from a task of the call"):
            assert (event, name) in found
    assert [call for event, call in found if event == "when it has ended"] == [None, None]


@pytest.mark.parametrize("level", ["debug", "info"])
def test_disconnected_client_is_no_error(log: io.StringIO, level: str) -> None:
    logs.configure(level, log)
    grpc_core = logging.getLogger("grpc._cython.cygrpc")
    for failure in (cygrpc.ExecuteBatchError("Failed"), RuntimeError("a defect")):
        try:
            raise failure
        except (cygrpc.ExecuteBatchError, RuntimeError):
            grpc_core.exception("%s raised in core by servicer method [%s]", failure, "a.b/C")
    *gone, defect = lines(log)
    assert defect["level"] == "error"
    assert "Traceback" in defect["exception"]
    assert [(line["level"], line["event"]) for line in gone] == (
        [("debug", "the client disconnected before its response was sent")] * (level == "debug")
    )
    assert all("exception" not in line for line in gone)


def test_error_and_log_have_the_same_call_id(server_process: ServerFactory) -> None:
    server = server_process("--log-calls").start()
    with server.channel() as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        references = [
            _reference(stub, (("x-request-id", "from-a-caller"),)),
            _reference(stub, ()),
            _reference(stub, (("x-request-id", "x" * 65),)),
        ]
    assert references[0] == "from-a-caller"
    assert len(set(references)) == 3
    assert all(len(reference) == 16 for reference in references[1:])
    assert server.terminate() == 0
    logged = [event for event in server.events if event["event"] == "call"]
    # A call is logged when it has ended, so two that follow each other in either order.
    assert sorted(event["call"] for event in logged) == sorted(references)
    assert {event["code"] for event in logged} == {"NOT_FOUND"}


def test_reference_is_shown_for_internal_errors_only() -> None:
    assert explain(NotFoundError("no message", reference="abc")) == "no message"
    assert explain(InternalError("a defect", reference="abc")) == "a defect (reference abc)"
    assert explain(InternalError("see abc", reference="abc")) == "see abc"


async def test_migration_logs_no_secret_and_no_content(tmp_path: Path) -> None:
    """A complete migration, with failures, at debug level."""
    access = tmp_path / "access.toml"
    token = f"{PLANTED}-token"
    digest = digest_of(token).hex()
    access.write_text(f'[[token]]\nname = "admin"\nrole = "admin"\nsha256 = "{digest}"\n')
    access.chmod(0o600)
    async with fresh_schema() as dsn:
        secret = dsn.replace("//postgres@", f"//postgres:{PLANTED}@")
        assert secret != dsn
        server = ServerProcess(
            tmp_path / "messages.db",
            "--log-level=debug",
            "--log-calls",
            "--shadow-share=1",
            env={
                "SAGASTORE_ACCESS": str(access),
                "SAGASTORE_POSTGRES": secret,
                "SAGASTORE_OPS_LISTEN": "127.0.0.1:0",
            },
        )
        with closing(server):
            await _use(server.start(), token)
            assert server.terminate() == 0
    text = "\n".join(server.stderr)
    assert "phase changed" in text
    assert '"event": "call"' in text
    assert PLANTED not in text
    assert "SELECT" not in text
    assert "Traceback" not in text


async def _use(server: ServerProcess, token: str) -> None:
    address = server.address
    async with AsyncClient(address, token=token) as client:
        for phase in filter(None, Phase):
            await go_to(client, phase)
            await _talk(client, f"{PLANTED}-{phase.value}")
    async with AsyncClient(address, token=f"{PLANTED}-wrong-token") as unknown:
        with pytest.raises(SagaStoreError):
            await unknown.get("m")


async def _talk(client: AsyncClient, word: str) -> None:
    """Make every kind of call, including ones that fail."""
    message = Message(
        f"{word}p", f"{word}r", word, id=word, tags=[word], metadata={word: word}, session_id=word
    )
    await client.save(message)
    await client.save(message)
    await client.bulk_save([message, Message("a", "user", word, id=f"{word}-2")])
    assert [hit async for hit in client.search(word, tags=[word], metadata={word: word})]
    assert [one async for one in client.list(word)]
    assert [one async for one in client.export()]
    for call in (
        client.save(message, if_revision=0),
        client.save(message, if_revision=99),
        client.get(f"{word}-missing"),
        client.get(word * 100),
        client.delete(f"{word}-missing"),
    ):
        with pytest.raises(SagaStoreError):
            await call
    await client.delete(f"{word}-2")


def _reference(stub: storage_pb2_grpc.StorageServiceStub, metadata: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Get(storage_pb2.GetRequest(id="none"), metadata=metadata, timeout=60)
    return refusal_of(caught.value).reference
