"""HTTP server of the ops port: metrics, liveness and readiness.

It runs in separate threads, so that it answers while the event loop is busy or hangs. All
answers are built from values in memory; no request waits for a store.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client.exposition import choose_encoder

from sagastore_server.config.address import Address
from sagastore_server.telemetry.readiness import LIVE_WITHIN, Readiness

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_MAX_REQUESTS = 16
"""Concurrent requests; further connections are closed immediately."""

_TIMEOUT = 5.0
"""Seconds that a client may take to send its request, and to read the response."""

_JSON = "application/json"

_log = structlog.get_logger(__name__)

Response = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""


class OpsServer:
    """The ops port. It listens once created, and answers from `start` to `close`."""

    def __init__(self, address: Address, readiness: Readiness, registry: CollectorRegistry) -> None:
        """Bind the port.

        Raises:
            OSError: The port is in use, or the address is not one of this machine.

        """
        pages: dict[str, Callable[[str], Response]] = {
            "/metrics": lambda accept: _metrics(registry, accept),
            "/livez": lambda _: _livez(readiness),
            "/readyz": lambda _: _readyz(readiness),
        }
        self._server = _Server(address, pages)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ops", daemon=True)

    @property
    def address(self) -> Address:
        """Address that it listens on."""
        host, port = self._server.server_address[:2]
        return Address(str(host), int(port))

    def start(self) -> None:
        """Start to answer requests."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Requests in progress are completed."""
        self._closing = True
        if not self._thread.is_alive():
            self._server.server_close()
            return
        # Wakes the thread, which blocks in accept().
        with contextlib.suppress(OSError):
            socket.create_connection(self.address, timeout=1.0).close()
        self._thread.join(1.0)
        self._server.server_close()

    def _run(self) -> None:
        while not self._closing:
            self._server.handle_request()


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    # On Windows the option would let two servers share the port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, address: Address, pages: dict[str, Callable[[str], Response]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.pages = pages
        self._free = threading.BoundedSemaphore(_MAX_REQUESTS)
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would resolve the host name, which can be slow and is not used.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - signature of the base class
        _log.debug("ops request aborted")


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        """Answer a request."""
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            known = ", ".join(self.server.pages)
            response = (
                HTTPStatus.NOT_FOUND,
                "text/plain",
                f"not found; available: {known}\n".encode(),
            )
        else:
            try:
                response = page(self.headers.get("Accept", ""))
            except Exception as exc:  # noqa: BLE001 - the client gets a status instead of a closed connection
                _log.error("ops request failed", path=self.path, exc_info=exc)
                text = b"internal error; see the log of the server\n"
                response = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", text
        self._send(*response)

    def do_HEAD(self) -> None:
        """Answer a request without the body."""
        self.do_GET()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Return a name without versions, which unauthenticated clients must not learn."""
        return "sagastore"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - signature of the base class
        """Log nothing: scrapes come every few seconds."""


def _metrics(registry: CollectorRegistry, accept: str) -> Response:
    encode, kind = choose_encoder(accept)
    return HTTPStatus.OK, kind, encode(registry)


def _livez(readiness: Readiness) -> Response:
    silence, live = readiness.silence, readiness.live
    status = HTTPStatus.OK if live else HTTPStatus.SERVICE_UNAVAILABLE
    detail = f"the last heartbeat of the event loop was {silence:.1f} s ago"
    if not live:
        detail += f"; the limit is {LIVE_WITHIN:g} s"
    return status, _JSON, _json({"live": live, "detail": detail})


def _readyz(readiness: Readiness) -> Response:
    document = readiness.document()
    status = HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _JSON, _json(document)


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()
