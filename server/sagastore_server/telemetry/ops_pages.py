"""Pages of the ops port as an ASGI application: metrics, liveness and readiness.

All answers are built from values in memory; no request waits for a store. Each answer closes its
connection. Request bodies are refused.

A scrape takes 10 to 20 ms of processor time, during which the server's own threads wait for the
interpreter lock. Scrapes therefore share the text that is made after they have arrived, and use
at most `SCRAPE_SHARE` of a core, however many there are.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from prometheus_client.exposition import choose_encoder

from sagastore_server.telemetry.readiness import LIVE_WITHIN

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SCRAPE_SHARE = 0.1
"""Share of a core that scrapes may use. Prometheus, which scrapes every 15 s, uses 0.001."""

_LONGEST_PAUSE = 1.0
"""Longest time, in seconds, that a scrape waits because of the one before it."""

_VERSIONS = frozenset({"0.0.1", "0.0.4", "1.0.0"})
"""Versions of the two formats. `choose_encoder` raises an error for a version that is no number,
and repeats any other in the content type."""

_VERSION = re.compile(r";\s*version=([^;,\s]*)")
_JSON = "application/json"
_TEXT = "text/plain"

Refresh = Callable[[], Awaitable[None]]
"""Called before each exposition of the metrics."""

Response = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Probes(Protocol):
    """Liveness and readiness of the server. Safe in any thread."""

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat of the event loop."""

    @property
    def live(self) -> bool:
        """Whether the event loop runs."""

    def document(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""


class OpsPages:
    """ASGI application with the pages `/metrics`, `/livez` and `/readyz`.

    It belongs to one event loop. The server puts its connection into the ``state`` of the scope,
    under the name ``connection``; its method ``requested`` is called for each request.
    """

    def __init__(
        self, readiness: Probes, registry: CollectorRegistry, refresh: Refresh | None = None
    ) -> None:
        """Show ``readiness`` and the metrics of ``registry``, after ``refresh``."""
        self._metrics = _Metrics(registry, refresh)
        self._readiness = readiness
        self._pages: dict[str, Callable[[str], Awaitable[Response]]] = {
            "/metrics": self._metrics.page,
            "/livez": self._livez,
            "/readyz": self._readyz,
        }

    async def __call__(self, scope: Message, _: Receive, send: Send) -> None:
        """Answer a request."""
        scope["state"]["connection"].requested()
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        status, kind, body = await self._response(scope["method"], scope["path"], headers)
        fields = {"content-type": kind, "content-length": str(len(body))}
        # One request per connection, so that every place is free again within a known time.
        fields |= {"cache-control": "no-store", "connection": "close"}
        encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status.value, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    async def _response(self, method: str, path: str, headers: dict[str, str]) -> Response:
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.NOT_IMPLEMENTED, _TEXT, b"only GET and HEAD are supported\n"
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TEXT, b"send no request body\n"
        page = self._pages.get(path)
        if page is None:
            known = ", ".join(self._pages)
            return HTTPStatus.NOT_FOUND, _TEXT, f"not found; available: {known}\n".encode()
        try:
            return await page(headers.get("accept", ""))
        except Exception as exc:  # noqa: BLE001 - the client gets a status instead of a closed connection
            _log.error("ops request failed", path=path, exc_info=exc)
            text = b"internal error; see the log of the server\n"
            return HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, text

    async def _livez(self, _: str) -> Response:
        silence, live = self._readiness.silence, self._readiness.live
        status = HTTPStatus.OK if live else HTTPStatus.SERVICE_UNAVAILABLE
        detail = f"the last heartbeat of the event loop was {silence:.1f} s ago"
        if not live:
            detail += f"; the limit is {LIVE_WITHIN:g} s"
        return status, _JSON, _json({"live": live, "detail": detail})

    async def _readyz(self, _: str) -> Response:
        document = self._readiness.document()
        status = HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
        return status, _JSON, _json(document)


class _Metrics:
    """Exposition of a registry, for any number of concurrent scrapes.

    A scrape gets values of the time after its arrival. Scrapes that wait at the same time and
    accept the same format share one exposition.
    """

    def __init__(self, registry: CollectorRegistry, refresh: Refresh | None) -> None:
        self._registry = registry
        self._refresh = refresh
        self._lock = asyncio.Lock()
        self._latest: dict[str, tuple[float, bytes]] = {}
        """Start and result of the latest exposition in each format."""
        self._not_before = 0.0

    async def page(self, accept: str) -> Response:
        """Return the metrics in the format that ``accept`` prefers."""
        encode, kind = choose_encoder(_known_versions(accept))
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        async with self._lock:
            began, body = self._latest.get(kind, (-1.0, b""))
            if began < arrived:
                await asyncio.sleep(max(0.0, self._not_before - loop.time()))
                began = loop.time()
                if self._refresh is not None:
                    await self._refresh()
                body = encode(self._registry)
                self._latest[kind] = began, body
                ended = loop.time()
                pause = (ended - began) * (1 / SCRAPE_SHARE - 1)
                self._not_before = ended + min(pause, _LONGEST_PAUSE)
        return HTTPStatus.OK, kind, body


def _known_versions(accept: str) -> str:
    """Return ``accept``, or an empty text if it names a version that does not exist."""
    return accept if set(_VERSION.findall(accept)) <= _VERSIONS else ""


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()
