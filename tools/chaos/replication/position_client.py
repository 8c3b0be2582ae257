"""Client of several servers that keeps its position and states a requirement with each read.

It calls the servers through the generated stubs, without the retries of the client library: each
attempt is one operation of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import grpc
import grpc.aio

from sagastore import Message
from sagastore._convert import message_from_pb, message_to_pb
from sagastore._status import from_rpc_error
from sagastore.v1 import message_pb2, storage_pb2, storage_pb2_grpc
from tools.chaos.history import History, Operation
from tools.chaos.positions import Place, place_of
from tools.chaos.recording_client import fail
from tools.chaos.values import Value, shown

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.max_receive_message_length", -1),
)

_PAGE = 500
"""Largest size of a page."""


class Requirement(NamedTuple):
    """Which state a read must see."""

    name: str
    """``latest``, ``at_least`` or ``any_replica``."""
    position: str = ""

    def to_pb(self) -> message_pb2.Consistency:
        """Return it as a request has it."""
        if self.name == "at_least":
            return message_pb2.Consistency(at_least=self.position)
        if self.name == "any_replica":
            return message_pb2.Consistency(any_replica=True)
        return message_pb2.Consistency(latest=True)


class PositionClient:
    """Records each call as one operation, with the number of the server that it went to."""

    def __init__(
        self, addresses: Sequence[str], history: History, number: int, *, timeout: float
    ) -> None:
        """Connect to the servers, which have the numbers 1, 2, …; ``timeout`` in seconds."""
        self._channels = [grpc.aio.insecure_channel(one, _OPTIONS) for one in addresses]
        self._stubs = [storage_pb2_grpc.StorageServiceStub(one) for one in self._channels]
        self._addresses = addresses
        self._history = history
        self._number = number
        self._timeout = timeout
        self.position = ""
        """The highest position of its answers."""
        self._place: Place = (0, 0)

    async def close(self) -> None:
        async with AsyncExitStack() as stack:
            for channel in self._channels:
                stack.push_async_callback(channel.close)

    # ------------------------------------------------------------------ calls

    async def save(self, server: int, message: Message) -> bool:
        """Save a message; return whether that was acknowledged."""
        request = storage_pb2.SaveRequest(message=message_to_pb(message, message.id))
        args = {"value": Value.of(message, ()).as_json()}
        return await self._call(server, "Save", args, request, _saved)

    async def delete(self, server: int, id: str) -> bool:
        """Delete a message; return whether that was acknowledged."""
        request = storage_pb2.DeleteRequest(id=id)
        return await self._call(server, "Delete", {"id": id}, request, lambda _: {})

    async def get(self, server: int, id: str, requirement: Requirement) -> bool:
        request = storage_pb2.GetRequest(id=id, consistency=requirement.to_pb())
        return await self._call(
            server,
            "Get",
            {"id": id, **_asked(requirement)},
            request,
            lambda one: {"items": [_shown(one.message)]},
        )

    async def batch_get(self, server: int, ids: Sequence[str], requirement: Requirement) -> bool:
        request = storage_pb2.BatchGetRequest(ids=ids, consistency=requirement.to_pb())
        return await self._call(
            server,
            "BatchGet",
            {"ids": list(ids), **_asked(requirement)},
            request,
            lambda one: {
                "items": list(map(_shown, one.messages)),
                "missing": list(one.missing_ids),
            },
        )

    async def list(self, server: int, session: str, requirement: Requirement) -> bool:
        """Read the first page of a session."""
        request = storage_pb2.ListRequest(
            session_id=session, page_size=_PAGE, consistency=requirement.to_pb()
        )
        args = {"session": session, "order": "OLDEST", "size": _PAGE, **_asked(requirement)}
        return await self._call(
            server,
            "List",
            args,
            request,
            lambda one: {
                "items": list(map(_shown, one.messages)),
                "more": bool(one.next_page_token),
            },
        )

    async def _call(
        self,
        server: int,
        kind: str,
        args: Mapping[str, Any],
        request: Any,
        answer: Callable[[Any], Mapping[str, Any]],
    ) -> bool:
        operation = self._history.begin(self._number, kind, {**args, "server": server})
        call = getattr(self._stubs[server - 1], kind)
        try:
            response = await call(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as exc:
            self._fail(operation, exc, kind, server)
            return False
        except BaseException:
            operation.unknown("CANCELLED")
            raise
        operation.ok({**answer(response), "position": response.position})
        self._advance(response.position)
        return True

    def _fail(
        self, operation: Operation, error: grpc.aio.AioRpcError, kind: str, server: int
    ) -> None:
        address = self._addresses[server - 1]
        fail(operation, from_rpc_error(error, kind, address, timeout=self._timeout))

    def _advance(self, position: str) -> None:
        place = place_of(position)
        if place is not None and place > self._place:
            self.position, self._place = position, place


def _asked(requirement: Requirement) -> dict[str, str]:
    said = {"position": requirement.position} if requirement.name == "at_least" else {}
    return {"requirement": requirement.name, **said}


def _saved(response: storage_pb2.SaveResponse) -> dict[str, Any]:
    names = [storage_pb2.Store.Name(store) for store in response.durable_on]
    return {
        "id": response.id,
        "revision": response.revision,
        "created": response.created,
        "durable_on": sorted(name.removeprefix("STORE_") for name in names),
    }


def _shown(message: message_pb2.Message) -> Any:
    return shown(message_from_pb(message))
