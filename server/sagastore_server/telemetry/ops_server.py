"""The ops port: metrics, liveness and readiness over HTTP.

Served by threads, not by the event loop, so that it answers while that is busy, and above
all when it hangs. What it tells is in memory; a request waits for nothing.
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

_AT_ONCE = 16
"""Requests at a time; more connections are closed as they come."""

_PATIENCE = 5.0
"""Seconds that a client may take to send its request, or to read the answer."""

_JSON = "application/json"

_log = structlog.get_logger(__name__)

Answer = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""


class OpsServer:
    """Listens from the beginning; answers from ``start`` to ``close``."""

    def __init__(self, address: Address, readiness: Readiness, registry: CollectorRegistry) -> None:
        """Take the port.

        Raises:
            OSError: It is in use, or not an address of this machine.

        """
        pages: dict[str, Callable[[str], Answer]] = {
            "/metrics": lambda accept: _metrics(registry, accept),
            "/livez": lambda _: _livez(readiness),
            "/readyz": lambda _: _readyz(readiness),
        }
        self._server = _Server(address, pages)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ops", daemon=True)

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return Address(str(host), int(port))

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening. What is being answered is answered."""
        self._closing = True
        if not self._thread.is_alive():
            self._server.server_close()
            return
        # Wakes the thread, which waits for a connection.
        with contextlib.suppress(OSError):
            socket.create_connection(self.address, timeout=1.0).close()
        self._thread.join(1.0)
        self._server.server_close()

    def _run(self) -> None:
        while not self._closing:
            self._server.handle_request()


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    # On Windows the option means that two servers may have the same port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, address: Address, pages: dict[str, Callable[[str], Answer]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.pages = pages
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look up our name, which may take long and is for nothing.
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

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - theirs
        _log.debug("a request to the ops port broke off")


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server: _Server

    def do_GET(self) -> None:
        """Answer."""
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            known = ", ".join(self.server.pages)
            answer = HTTPStatus.NOT_FOUND, "text/plain", f"there are {known}\n".encode()
        else:
            try:
                answer = page(self.headers.get("Accept", ""))
            except Exception as exc:  # noqa: BLE001 - whoever asks gets a status, not a broken line
                _log.error("the ops port could not answer", path=self.path, exc_info=exc)
                text = b"internal error; the server's log has it\n"
                answer = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", text
        self._send(*answer)

    def do_HEAD(self) -> None:
        """Answer without a body."""
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
        """Tell strangers no versions."""
        return "sagastore"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - theirs
        """Say nothing: a scrape every few seconds is no news."""


def _metrics(registry: CollectorRegistry, accept: str) -> Answer:
    encode, kind = choose_encoder(accept)
    return HTTPStatus.OK, kind, encode(registry)


def _livez(readiness: Readiness) -> Answer:
    silence, live = readiness.silence, readiness.live
    status = HTTPStatus.OK if live else HTTPStatus.SERVICE_UNAVAILABLE
    detail = f"the event loop went round {silence:.1f} s ago"
    if not live:
        detail += f", which must not take longer than {LIVE_WITHIN:g} s"
    return status, _JSON, _json({"live": live, "detail": detail})


def _readyz(readiness: Readiness) -> Answer:
    document = readiness.document()
    status = HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _JSON, _json(document)


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()
