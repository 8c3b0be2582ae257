"""HTTP server of the ops port: uvicorn in a separate thread, with limits for connections.

It has a separate thread and event loop, so that it answers while the event loop of the server is
busy or hangs. Anybody who reaches the port can connect, therefore

* a request must arrive within `REQUEST_SECONDS` of its connection, whatever the client sends;
* the client must have read the answer within `ANSWER_SECONDS`;
* a request has at most `HEAD_BYTES`, and no body (`ops_pages`);
* there are at most `MAX_CONNECTIONS`, and `MAX_PER_SOURCE` of one address. A further connection
  takes the place of the oldest.

A probe sends its request at once, and its answer takes milliseconds. So connections that are
slow, idle or half-open, in any number, do not keep a probe from its answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sagastore_server.config.address import Address
from sagastore_server.telemetry.ops_pages import OpsPages, Probes, Refresh

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from uvicorn.server import ServerState

REQUEST_SECONDS = 5.0
"""Time from the connection until the head of its request is complete."""

ANSWER_SECONDS = 10.0
"""Time from the request until its answer has been sent. Prometheus waits 10 s by default."""

HEAD_BYTES = 16 * 1024
"""Longest head of a request. Those of Prometheus and Kubernetes have less than 500 bytes."""

MAX_CONNECTIONS = 128
"""Concurrent connections."""

MAX_PER_SOURCE = 64
"""Concurrent connections of one address: more than `_ACCEPTED_AT_ONCE` admits while a request
travels through the event loop, which takes three rounds."""

_ACCEPTED_AT_ONCE = 16
"""Connections that are accepted in one round of the event loop."""

_QUEUE = 1024
"""Connections that wait in the kernel to be accepted. Without room in this queue, a connection
is repeated by its client's kernel, after a second or more."""

_DRAIN_SECONDS = 2
"""Time for requests in progress when the server stops."""

_END_SECONDS = 10.0
"""Longest wait for the thread to end."""


class OpsServer:
    """The ops port. It listens once created, and answers while `run` runs."""

    def __init__(
        self,
        address: Address,
        readiness: Probes,
        registry: CollectorRegistry,
        refresh: Refresh | None = None,
    ) -> None:
        """Bind the port; ``refresh`` is awaited in the thread of the server before each scrape.

        Raises:
            OSError: The port is in use, or the address is not one of this machine.

        """
        self._readiness = readiness
        self._registry = registry
        self._refresh = refresh
        self._listener = _listener(address)

    @property
    def address(self) -> Address:
        """Address that it listens on."""
        host, port = self._listener.getsockname()[:2]
        return Address(str(host), int(port))

    async def run(self) -> None:
        """Answer requests until cancelled; then complete those in progress.

        Raises:
            RuntimeError: The server has failed.

        """
        server = _Server(_Config(OpsPages(self._readiness, self._registry, self._refresh)))
        ended: Future[None] = Future()
        # A copy, because uvicorn closes what it is given, and a restart needs the port again.
        arguments = server, self._listener.dup(), ended
        threading.Thread(target=_run, args=arguments, name="ops", daemon=True).start()
        waiting = asyncio.wrap_future(ended)
        try:
            await asyncio.shield(waiting)
        finally:
            server.should_exit = True
            await asyncio.wait({waiting}, timeout=_END_SECONDS)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def _listener(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # On Windows the option would let two servers share the port.
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(_QUEUE)
    except OSError:
        listener.close()
        raise
    return listener


def _run(server: _Server, listener: socket.socket, ended: Future[None]) -> None:
    """Run ``server`` until it ends, and report that to ``ended``. The target of the thread."""
    try:
        # asyncio's own event loop: it limits how many connections one round accepts, which
        # uvloop does not.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(server.serve([listener]))
    except BaseException as exc:  # noqa: BLE001 - reported by the task that waits
        ended.set_exception(RuntimeError(f"the ops server ended: {type(exc).__name__}: {exc}"))
    else:
        ended.set_result(None)
    finally:
        listener.close()


class _Places:
    """The open connections, and the limits of their number. Belongs to one event loop."""

    def __init__(self) -> None:
        # A dictionary keeps the order of arrival.
        self._taken: dict[_Connection, None] = {}

    def enter(self, new: _Connection) -> None:
        """Add a connection; close an older one if there are too many.

        Whatever the oldest does, it had more time than any of the others.
        """
        same = [one for one in self._taken if one.source == new.source]
        if len(same) >= MAX_PER_SOURCE:
            same[0].abort()
        elif len(self._taken) >= MAX_CONNECTIONS:
            next(iter(self._taken)).abort()
        self._taken[new] = None

    def leave(self, connection: _Connection) -> None:
        """Remove a connection."""
        self._taken.pop(connection, None)


class _Config(uvicorn.Config):
    def __init__(self, pages: OpsPages) -> None:
        super().__init__(
            pages,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            # No name with a version, which unauthenticated clients must not learn.
            server_header=False,
            headers=[("server", "sagastore")],
            backlog=_ACCEPTED_AT_ONCE,
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            # Scrapes come every few seconds, and no client may fill the log.
            access_log=False,
            log_config=None,
            log_level=logging.CRITICAL,
        )
        self.places = _Places()


class _Connection(H11Protocol):
    """A connection with time limits and a place among the others."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state | {"connection": self}, _loop)
        assert isinstance(config, _Config)  # noqa: S101 - for the type checker
        self._places = config.places
        self._limit: asyncio.TimerHandle | None = None
        self.source = ""
        """Address of the client, without its port."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the request."""
        super().connection_made(transport)
        self.source = transport.get_extra_info("peername", ("",))[0]
        self._allow(REQUEST_SECONDS)
        self._places.enter(self)

    def requested(self) -> None:
        """Start the time limit of the answer, because the request has arrived."""
        self._allow(ANSWER_SECONDS)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open if the client has sent its request and waits for the answer."""
        return self.scope is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        if self._limit is not None:
            self._limit.cancel()
        self._places.leave(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection at once, without sending what the client has not read."""
        # Here, because the transport reports the end only in the next round of the event loop.
        self._places.leave(self)
        self.transport.abort()

    def _allow(self, seconds: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(seconds, self.abort)


class _Server(uvicorn.Server):
    """uvicorn with a queue that is longer than the ``backlog`` that limits accepting."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_QUEUE)
