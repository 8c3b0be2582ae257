"""ReplicaPool: connections to one read replica, whatever the role of its server at present."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from sagastore_server.config.connection import resolve_replica
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql.connecting import Connection, Connector, ConnectTimeoutError
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.primary import Role
from sagastore_server.postgresql.watermark import Identity, identity_of
from sagastore_server.storage.errors import CannotOpenError

SILENT_AFTER = 1.0
"""Seconds without an answer after which a replica counts as silent: a read has another server."""

_FEWEST = 2
"""Connections that are always open. The second one shows a load balancer."""


def replica_options(options: PostgreSQLOptions, dsn: str) -> PostgreSQLOptions:
    """Return the options of the pool of a replica: as many connections as to the primary.

    Fewer are kept open, and the time limits for establishing and acquiring one are shorter.
    """
    return options._replace(
        dsn=dsn,
        pool_min=min(_FEWEST, options.pool_max),
        acquire_timeout=min(SILENT_AFTER, options.acquire_timeout),
        replicas=(),
    )


class OtherDataError(CannotOpenError):
    """The server belongs to another cluster, or the connection is to another database."""


class ReplicaPool(Pool):
    """Pool of connections to one replica. Each of them has the identity of its server."""

    def __init__(
        self,
        options: PostgreSQLOptions,
        schema: str,
        data: tuple[int, int],
        on_connected: Callable[[Identity], None],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Create a pool; only ``open`` connects.

        Args:
            options: See `replica_options`.
            schema: Schema of the tables, as an identifier.
            data: The data of the primary (`Identity.data`).
            on_connected: Called with the identity of the server of each new connection.
            tracer: Records spans.

        """
        super().__init__(options, tracer, schema=schema)
        self._data = data
        self._on_connected = on_connected

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Log nothing: `Replica` reports what is wrong with its server, and reads continue."""
        yield

    def _new_connector(self) -> Connector:
        options = self._options
        parameters = resolve_replica(options.dsn, os.environ)
        return ReplicaConnector(parameters, options.acquire_timeout, options.statement_cache)

    async def _prepare(self, connection: Connection) -> Role:
        role = await super()._prepare(connection)
        identity = await identity_of(connection)
        if identity.data != self._data:
            raise OtherDataError(
                "it belongs to another cluster or is another database than that of postgres"
            )
        connection.identity = identity
        connection.opened_at = time.monotonic()
        self._on_connected(identity)
        return role

    def drop(self) -> None:
        """End all connections, also those in use: the server is silent."""
        if isinstance(self.connector, ReplicaConnector):
            self.connector.drop()


class ReplicaConnector(Connector):
    """Opens connections to one server."""

    async def connect(
        self,
        settings: Mapping[str, str],
        prepare: Callable[[Connection], Awaitable[Role]],
        command_timeout: float | None = None,
    ) -> Connection:
        """As `Connector.connect`, whatever the role of the server is."""
        (address,) = self.parameters.addresses
        try:
            async with asyncio.timeout(self.timeout):
                connection = await self.connect_to(address, settings, command_timeout)
                try:
                    await prepare(connection)
                except BaseException:
                    connection.terminate()
                    raise
        except TimeoutError as exc:
            raise ConnectTimeoutError from exc
        self._connections.add(connection)
        return connection

    def drop(self) -> None:
        """End all connections."""
        for connection in list(self._connections):
            connection.terminate()
