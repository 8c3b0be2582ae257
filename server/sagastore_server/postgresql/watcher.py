"""Watcher of the primary: notices a promotion while the former primary is silent.

A lost connection leads to the next primary. But a primary that hangs ends no connection, so its
callers would wait for their time limits, even after another server was promoted. With several
hosts, each is therefore asked for its role, over a separate connection.
"""

from __future__ import annotations

import asyncio
from functools import partial

from sagastore_server.config.connection import Address
from sagastore_server.postgresql.connecting import Connection, Connector
from sagastore_server.postgresql.errors import DRIVER_ERRORS
from sagastore_server.postgresql.primary import Role, asked_role
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor

PROBE_SECONDS = 0.5
"""Time between two questions to a host."""


class PrimaryWatcher:
    """Asks every host for its role while the store is open."""

    def __init__(self, connector: Connector, supervisor: Supervisor) -> None:
        """Start to watch the hosts of ``connector``, if there are several."""
        addresses = connector.parameters.addresses if connector.has_choice else ()
        self._connector = connector
        self._tasks: list[SupervisedTask] = [
            supervisor.start(f"postgresql-watcher-{number}", partial(self._watch, address))
            for number, address in enumerate(addresses, start=1)
        ]

    async def close(self) -> None:
        """Stop watching."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*(task.stop() for task in tasks))

    async def _watch(self, address: Address) -> None:
        connection: Connection | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(self._connector.timeout):
                        if connection is None:
                            connection = await self._connector.connect_to(address, {})
                        self._note(address, await asked_role(connection))
                except DRIVER_ERRORS:
                    if connection is not None:
                        connection.terminate()
                    connection = None
                await asyncio.sleep(PROBE_SECONDS)
        finally:
            if connection is not None:
                connection.terminate()

    def _note(self, address: Address, role: Role) -> None:
        primary = self._connector.primary
        if not role.is_standby and role.timeline > primary.timeline:
            primary.accept(address, role)
