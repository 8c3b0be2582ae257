"""Start of serving: calls are answered from the store, or forwarded until that can be done."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from sagastore_server import __version__
from sagastore_server.banner import Serving, banner_of
from sagastore_server.config.address import Address
from sagastore_server.config.settings import Settings
from sagastore_server.forwarder import Forwarder
from sagastore_server.rpc.server import RpcServer
from sagastore_server.runtime.supervisor import Policy, SupervisedTask, Supervisor
from sagastore_server.runtime.systemd import Notifier
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import CannotOpenError, StorageError
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.telemetry.setup import Telemetry
from sagastore_server.telemetry.store_watch import StoreWatch

_OPEN_AGAIN = 1.0
"""Seconds until PostgreSQL is opened again, if that failed at the end of a migration."""

_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on

_log = structlog.get_logger(__name__)


class Service(NamedTuple):
    """The stores that the settings name, as one service."""

    backend: StorageBackend
    control: MigrationControl
    place: Callable[[], str]
    """Location of the messages, for display; may change with the phase."""
    needs_watching: Callable[[], bool]
    """Whether the store can become unavailable and recover; a file does not."""
    store_id: Callable[[], str]
    """Returns the identity of the messages, once the store is open; empty: unknown."""
    forwarder: Forwarder | None = None
    """Follows the holder of a migration; None: this server answers calls from the start."""

    async def close(self) -> None:
        """Close the stores."""
        if self.forwarder is not None:
            await self.forwarder.close()
        await self.backend.close()


class Advertised:
    """Returns the address at which other servers reach this one, once it listens."""

    def __init__(self, settings: Settings) -> None:
        """Derive it from ``advertise`` or ``listen``."""
        self._given = settings.advertise
        self.address = settings.address
        """The address that the server listens on."""

    def __call__(self) -> str:
        """Return ``HOST:PORT``."""
        if self._given is not None:
            return self._given
        if self.address.host in _ALL_ADDRESSES:
            return str(self.address._replace(host=socket.gethostname()))
        return str(self.address)


@dataclass
class Startup:
    """A server that listens, and what it needs to serve."""

    settings: Settings
    server: RpcServer
    service: Service
    telemetry: Telemetry
    supervisor: Supervisor
    systemd: Notifier
    address: Address
    announce: Callable[[Serving], None]
    """Receives the state once calls are accepted."""
    say: Callable[[str], None]
    """Prints the banner of a forwarder."""
    listen: Callable[[], Awaitable[object]] | None = None
    """Binds a port that other processes share, once the store is open; None: it is bound."""
    tasks: list[SupervisedTask] = field(default_factory=list)

    async def start(self) -> None:
        """Open the store and accept calls, or forward them until that can be done.

        Raises:
            CannotOpenError: The store cannot be opened.

        """
        forwarder = self.service.forwarder
        if forwarder is not None:
            await forwarder.look()
            if not forwarder.is_finished:
                await self._forward(forwarder)
                return
        await self.service.backend.open()
        if self.listen is not None:
            await self.listen()
        await self._serve()

    async def stop(self) -> None:
        """Stop the background tasks."""
        await asyncio.gather(*(task.stop() for task in self.tasks))

    async def _serve(self) -> None:
        service, telemetry = self.service, self.telemetry
        self.server.serve_here()
        telemetry.opened()
        self.announce(await self._state())
        self.systemd.ready(f"serving {service.place()} on {self.address}")
        watch = StoreWatch(
            service.backend.health,
            self.server.set_ready,
            telemetry.readiness,
            service.needs_watching,
        )
        self.tasks.append(self.supervisor.start("store-watch", watch.run))

    # ------------------------------------------------------------------ forwarding

    async def _forward(self, forwarder: Forwarder) -> None:
        start = self.supervisor.start
        await self.server.start_accepting()
        self.telemetry.readiness.opened()
        where = f"forwarded until {self.service.place()} is the only store"
        _log.info("forwarding starts", address=str(self.address), version=__version__, store=where)
        self.say(banner_of(self._serving(where, -1, 0), self.settings))
        self.systemd.ready(f"{where}, on {self.address}")
        report = partial(forwarder.report, self.server.set_forwarding_health)
        following = start("forwarder", forwarder.follow)
        self.tasks += [
            following,
            start("forwarder-health", report),
            start("forwarder-takeover", partial(self._take_over, following), Policy.FATAL),
        ]

    async def _take_over(self, following: SupervisedTask) -> None:
        """Open PostgreSQL once it is the only store, and answer calls from it.

        Until it is open, calls are forwarded: the former holder answers from PostgreSQL, too.
        """
        await following.wait()
        while True:
            try:
                await self.service.backend.open()
            except CannotOpenError as exc:
                _log.error("the migration is finished, but PostgreSQL not open yet: %s", exc)
                await asyncio.sleep(_OPEN_AGAIN)
            else:
                break
        await self._serve()

    # ------------------------------------------------------------------ announcing

    async def _state(self) -> Serving:
        backend = self.service.backend
        messages = (await backend.health()).messages
        return self._serving(self.service.place(), messages, await _quarantined(backend))

    def _serving(self, store: str, messages: int, quarantined: int) -> Serving:
        ops = self.telemetry.address
        return Serving(__version__, self.address, ops, store, messages, quarantined)


async def _quarantined(backend: StorageBackend) -> int:
    """Return the number of rows in quarantine, or 0 if the store does not answer.

    The server already serves, and a number for the banner must not end it.
    """
    try:
        return await backend.quarantine_count()
    except StorageError as exc:
        _log.warning("quarantine not counted", detail=str(exc))
        return 0
