"""Connector: opens connections to PostgreSQL, to the first of several addresses that is usable.

* Each address has a separate time limit, so a silent server does not keep the others from being
  tried. The limit of the driver spans all of them.
* Only the primary is usable (``primary``), and the last one is tried first. Before the first
  connection, every server is asked for its role: an old primary that was not stopped also accepts
  writes, and only the timelines tell which one is the current one.
* After a promotion, connections to the former primary are ended, also those that are in use: it may
  be silent, or not know that it is no longer the primary.
* TCP keepalive detects an unreachable peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from weakref import WeakSet

import asyncpg

from sagastore_server.config.connection import Address, ConnectionParameters, Keepalive
from sagastore_server.postgresql.errors import DRIVER_ERRORS
from sagastore_server.postgresql.primary import Primary, Role, asked_role

Connection = Any
"""An asyncpg connection. asyncpg has no type annotations."""

_SILENT_AFTER = 1.0
"""Seconds for establishing a connection to one of several addresses, at most. Longer, the server
counts as silent, and the next one is tried."""

_LOOK_AGAIN_AFTER = 0.5
"""Seconds between two searches for a promotion: callers with invalid positions cause them, too."""

_NEXT_ADDRESS = (
    OSError,  # TimeoutError, too
    asyncpg.CannotConnectNowError,
    asyncpg.exceptions.TargetServerAttributeNotMatched,
)
"""Errors after which the next address is tried. libpq does not try it after others, either: a
rejected password would be rejected by each."""


class ConnectTimeoutError(TimeoutError):
    """A server did not answer while a connection was established."""


class Connector:
    """Opens connections with the same parameters."""

    def __init__(
        self,
        parameters: ConnectionParameters,
        timeout: float,
        cache: int,
        on_promotion: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a connector.

        Args:
            parameters: The parameters.
            timeout: Seconds for establishing a connection, in all.
            cache: Prepared statements per connection.
            on_promotion: Called when another server has become the primary, before the
                connections to the former one are ended.

        """
        self.parameters = parameters
        self._cache = cache
        share = timeout
        if parameters.has_host and len(parameters.addresses) > 1:
            share = min(timeout / len(parameters.addresses), _SILENT_AFTER)
        self.timeout = parameters.connect_timeout or share
        """Seconds for establishing a connection to one address."""
        self.primary = Primary(self._promoted)
        self._on_promotion = on_promotion
        self._asking = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._looked_at = -math.inf
        self._connections: WeakSet[WatchedConnection] = WeakSet()
        tls = urlencode(dict(parameters.tls), quote_via=quote)
        self._dsn = f"postgresql://?{tls}" if tls else "postgresql://"

    @property
    def has_choice(self) -> bool:
        """Whether there are several servers, one of which is the primary."""
        return self.parameters.has_host and len(self.parameters.addresses) > 1

    async def connect(
        self,
        settings: Mapping[str, str],
        prepare: Callable[[Connection], Awaitable[Role]],
        command_timeout: float | None = None,
    ) -> Connection:
        """Open a connection to the primary, at the first usable address.

        Args:
            settings: Settings of PostgreSQL for the session; they replace those of the parameters.
            prepare: Prepares a new connection, and returns the role of its server.
            command_timeout: Seconds after which the network counts as failed.

        Raises:
            asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``: the error of the last
                address.

        """
        await self._find_primary()
        addresses = list(self.parameters.addresses)
        if self.parameters.shuffled:
            random.shuffle(addresses)
        *first, last = self.primary.first(addresses)
        for address in first:
            with contextlib.suppress(*_NEXT_ADDRESS):
                return await self._connect_primary(address, settings, prepare, command_timeout)
        return await self._connect_primary(last, settings, prepare, command_timeout)

    async def _find_primary(self) -> None:
        """Ask all servers at once for their roles, unless a primary is known or there is no choice.

        It takes the time limit of one address at most. Servers that fail or do not answer are left
        out; if that leaves no primary, the caller tries each in turn and reports the error.
        """
        async with self._asking:
            if not self.has_choice or self.primary.is_known:
                return
            addresses = self.parameters.addresses
            roles = await asyncio.gather(*map(self._role_at, addresses))
            answered = zip(addresses, roles, strict=True)
            self.primary.choose([(address, role) for address, role in answered if role])

    async def look_for_promotion(self) -> None:
        """Ask all servers at once whether one is the primary of a later timeline.

        If so, the connections to the former primary are ended. It takes the time limit of one
        address at most, and does nothing if the servers were asked in the last
        `_LOOK_AGAIN_AFTER` seconds.
        """
        # Not the lock of `_find_primary`, for which new connections wait.
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now < self._looked_at + _LOOK_AGAIN_AFTER:
                return
            addresses = self.parameters.addresses
            roles = await asyncio.gather(*map(self._role_at, addresses))
            for address, role in zip(addresses, roles, strict=True):
                if role and not role.is_standby and role.timeline > self.primary.timeline:
                    self.primary.accept(address, role)
            self._looked_at = asyncio.get_running_loop().time()

    async def _role_at(self, address: Address) -> Role | None:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self.timeout):
                connection = await self.connect_to(address, {})
                return await asked_role(connection)
        except (*DRIVER_ERRORS, ValueError):
            return None
        finally:
            if connection is not None:
                connection.terminate()

    async def _connect_primary(
        self,
        address: Address,
        settings: Mapping[str, str],
        prepare: Callable[[Connection], Awaitable[Role]],
        command_timeout: float | None,
    ) -> Connection:
        try:
            async with asyncio.timeout(self.timeout):
                connection = await self.connect_to(address, settings, command_timeout)
                try:
                    role = await prepare(connection)
                    self.primary.accept(address, role)
                except BaseException:
                    connection.terminate()
                    raise
        except TimeoutError as exc:
            raise ConnectTimeoutError from exc
        connection.timeline = role.timeline
        self._connections.add(connection)
        return connection

    def _promoted(self) -> None:
        self._on_promotion()
        for connection in list(self._connections):
            if connection.timeline < self.primary.timeline:
                connection.terminate()

    async def connect_to(
        self, address: Address, settings: Mapping[str, str], command_timeout: float | None = None
    ) -> Connection:
        """Open a connection to one server, whatever its role.

        Raises:
            asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

        """
        parameters = self.parameters
        try:
            connection = await asyncpg.connect(
                self._dsn,
                host=address.host,
                port=address.port,
                user=parameters.user,
                password=parameters.password,
                passfile=parameters.passfile,
                database=parameters.database,
                target_session_attrs=parameters.target,
                connection_class=WatchedConnection,
                timeout=self.timeout,
                command_timeout=command_timeout,
                statement_cache_size=self._cache,
                server_settings={**parameters.settings, **settings},
            )
        except TimeoutError as exc:
            raise ConnectTimeoutError from exc
        connection.keep_alive(parameters.keepalive)
        return connection

    def unusable_file(self) -> str | None:
        """Return which file of the parameters cannot be used, and why; None if all can."""
        tls = self.parameters.tls
        mode = tls.get("sslmode", "")
        verifies = mode.startswith("verify-")
        if verifies and "sslrootcert" not in tls and not _DEFAULT_ROOTS.expanduser().exists():
            return f"sslmode={mode} needs sslrootcert (there is no {_DEFAULT_ROOTS})"
        for name in ("sslrootcert", "sslcrl"):
            if name in tls and (problem := _problem(_load_roots, tls[name])):
                return f"{name}: {problem}"
        if "sslcert" not in tls:
            return None
        for name in ("sslcert", "sslkey"):
            # Read first, to say which of the two files it is.
            if name in tls and (problem := _problem(_read, tls[name])):
                return f"{name}: {problem}"
        problem = _problem(lambda path: _load_chain(path, tls), tls["sslcert"])
        return f"sslcert and sslkey: {problem}" if problem else None


_DEFAULT_ROOTS = Path("~/.postgresql/root.crt")


def _problem(load: Callable[[str], None], path: str) -> str | None:
    try:
        load(path)
    except ssl.SSLError:
        return f"{path} is not PEM, or its key is another one or encrypted (sslpassword)"
    except OSError as exc:
        return f"cannot read {path}: {exc.strerror}"
    return None


def _read(path: str) -> None:
    with Path(path).open("rb"):
        pass


def _load_roots(path: str) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)


def _load_chain(path: str, tls: Mapping[str, str]) -> None:
    password = tls.get("sslpassword", "")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(path, tls.get("sslkey"), password=lambda: password)


class WatchedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Connection that records whether this side has ended it."""

    __slots__ = (
        *("_socket", "ended_here", "has_schema", "system", "tells_positions", "timeline"),
        *("identity", "opened_at"),
    )

    def __init__(self, protocol: Any, transport: Any, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        self.ended_here = False
        self.has_schema = False
        """Whether it was opened for the schema of the pool."""
        self.timeline = 0
        """Timeline of its server when it was opened; 0: unknown."""
        self.identity: Any = None
        """Identity of its server, if that is a replica (``replica_pool``)."""
        self.opened_at = 0.0
        """`time.monotonic` when it was ready, if its server is a replica."""
        self.system = 0
        """System identifier of its server when it was opened; 0: unknown."""
        self.tells_positions = False
        """Whether its server tells positions to its role (``positions``)."""
        self._socket = transport.get_extra_info("socket")

    def keep_alive(self, keepalive: Keepalive) -> None:
        """Set how an unresponsive peer is detected, if this is a TCP connection."""
        _set_keepalive(self._socket, keepalive)

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        """Close the connection gracefully."""
        self.ended_here = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        """Close the connection immediately."""
        self.ended_here = True
        super().terminate()


def _set_keepalive(sock: Any, keepalive: Keepalive) -> None:
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keepalive.enabled))
    options = {
        "TCP_KEEPIDLE": keepalive.idle,
        "TCP_KEEPINTVL": keepalive.interval,
        "TCP_KEEPCNT": keepalive.probes,
        "TCP_USER_TIMEOUT": keepalive.user_timeout,
    }
    for name, value in options.items():
        # Not every system has all of these options.
        if keepalive.enabled and value and hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
