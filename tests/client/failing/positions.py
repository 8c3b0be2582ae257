"""Calls of the protocol that carry positions, and steps of a scripted server that tell them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2

from sagastore import (
    File,
    Message,
)
from sagastore.v1 import file_pb2, message_pb2, session_pb2, storage_pb2
from sagastore_server.interfaces.consistency import WalPosition
from tests.client.failing.scripted import Script, Step, answer, refuse

Code = grpc.StatusCode

HELLO = Message("openai", "user", "hello", id="x")

SYSTEM = 7_400_000_000_000_000_001


def at(lsn: int, timeline: int = 1, system: int = SYSTEM) -> str:
    return WalPosition(system, timeline, lsn).encoded()


def refused_position() -> Step:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="consistency.at_least", description="belongs to another PostgreSQL system"
    )
    return refuse(
        Code.INVALID_ARGUMENT,
        "consistency.at_least: belongs to another PostgreSQL system",
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def saved(lsn: int) -> Step:
    return answer(storage_pb2.SaveResponse(id="x", revision=1, created=True, position=at(lsn)))


def found(lsn: int = 0) -> Step:
    message = message_pb2.Message(id="x", content="c")
    position = at(lsn) if lsn else ""
    return answer(storage_pb2.GetResponse(message=message, position=position))


def streamed(*responses: Any) -> Step:
    async def step(_: Any, __: Any) -> Any:
        async def stream() -> AsyncIterator[Any]:
            for response in responses:
                yield response

        return stream()

    return step


def acknowledged(*lsns: int) -> Step:
    """Acknowledge each batch of a bulk save, with these positions in turn."""

    async def step(requests: Any, _: Any) -> Any:
        async def stream() -> AsyncIterator[Any]:
            places = iter(lsns)
            async for request in requests:
                yield storage_pb2.BulkSaveResponse(
                    sequence=request.sequence,
                    saved=len(request.messages),
                    position=at(place) if (place := next(places)) else "",
                )

        return stream()

    return step


def required(request: Any) -> str:
    """Return the requirement of a request as text."""
    kind = request.consistency.WhichOneof("requirement")
    if kind is None:
        return "latest"
    value: str = getattr(request.consistency, kind)
    return value if kind == "at_least" else kind


def requirements(script: Script, kind: type) -> list[str]:
    return [required(request) for request in script.requests if isinstance(request, kind)]


async def items(pager: Any) -> list[Any]:
    return [item async for item in pager]


class Rpc(NamedTuple):
    """A call of the protocol and the method that makes it."""

    name: str
    response: type[Any]
    call: Callable[..., Any]

    def step(self, position: str = "") -> Step:
        """Answer with this position."""
        response = self.response(position=position)
        return streamed(response) if self.name == "Export" else answer(response)


READS = [
    Rpc("Get", storage_pb2.GetResponse, lambda c, **k: c.get("x", **k)),
    Rpc("BatchGet", storage_pb2.BatchGetResponse, lambda c, **k: c.batch_get(["x"], **k)),
    Rpc("List", storage_pb2.ListResponse, lambda c, **k: items(c.list("s", **k))),
    Rpc("Search", storage_pb2.SearchResponse, lambda c, **k: items(c.search("w", **k))),
    Rpc("Export", storage_pb2.ExportResponse, lambda c, **k: items(c.export(**k))),
    Rpc("GetSession", session_pb2.GetSessionResponse, lambda c, **k: c.sessions.get("s", **k)),
    Rpc(
        "ListSessions",
        session_pb2.ListSessionsResponse,
        lambda c, **k: items(c.sessions.list(**k)),
    ),
    Rpc("GetFile", file_pb2.GetFileResponse, lambda c, **k: c.files.get("x", **k)),
    Rpc("ListFiles", file_pb2.ListFilesResponse, lambda c, **k: items(c.files.list(**k))),
]

WRITES = [
    Rpc("Save", storage_pb2.SaveResponse, lambda c: c.save(HELLO)),
    Rpc("Delete", storage_pb2.DeleteResponse, lambda c: c.delete("x")),
    Rpc("Append", session_pb2.AppendResponse, lambda c: c.sessions.append("s", [HELLO])),
    Rpc(
        "UpdateSession",
        session_pb2.UpdateSessionResponse,
        lambda c: c.sessions.update("s", title="t"),
    ),
    Rpc(
        "TruncateSession",
        session_pb2.TruncateSessionResponse,
        lambda c: c.sessions.truncate("s", drop_last=1),
    ),
    Rpc("DeleteSession", session_pb2.DeleteSessionResponse, lambda c: c.sessions.delete("s")),
    Rpc("SaveFile", file_pb2.SaveFileResponse, lambda c: c.files.save(File("f", "p", "t"))),
    Rpc("DeleteFile", file_pb2.DeleteFileResponse, lambda c: c.files.delete("x")),
]

EACH_READ = pytest.mark.parametrize("rpc", READS, ids=lambda rpc: rpc.name)

EACH_WRITE = pytest.mark.parametrize("rpc", WRITES, ids=lambda rpc: rpc.name)
