"""Planted faults of failover and durability, which rounds of the profile ``cluster`` must catch.

Each reverts one guarantee of docs/explanation/replication.md.
"""

from __future__ import annotations

from typing import Any

from sagastore_server.config.connection import Address
from sagastore_server.postgresql import commit, timeline
from sagastore_server.postgresql.connecting import Connector
from sagastore_server.postgresql.primary import NotThePrimaryError, Primary, Role
from tools.chaos.plant_registry import plant, replace

CLUSTER = "cluster"

_FOREVER = 300.0
"""Seconds that exceed every round."""


@plant(
    "ignore-replication-warning",
    "a commit whose wait for a standby was cancelled is acknowledged",
    CLUSTER,
)
def _ignore_replication_warning() -> None:
    replace(commit, "_CANCELLED_IN", "no function has this name")


@plant(
    "ignore-timeline",
    "a primary on a lower timeline is used again, and its connections are kept",
    CLUSTER,
)
def _ignore_timeline() -> None:
    def accept(self: Primary, address: Address, role: Role) -> None:
        if role.is_standby:
            raise NotThePrimaryError("the server of PostgreSQL is a standby")
        self.address, self.timeline = address, role.timeline

    def choose(self: Primary, found: Any) -> None:
        """Leave the choice to the order of the hosts."""

    replace(Primary, "accept", accept)
    replace(Primary, "choose", choose)
    replace(Connector, "_promoted", lambda self: self._on_promotion())


@plant("no-host-timeout", "a silent host has no time limit of its own", CLUSTER)
def _no_host_timeout() -> None:
    original = Connector.__init__

    def create(self: Connector, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.timeout = _FOREVER

    replace(Connector, "__init__", create)


@plant("repeat-revisions", "no revisions are skipped on a new timeline", CLUSTER)
def _repeat_revisions() -> None:
    async def enter(*_: Any) -> None:
        """Go on with the numbers of the sequence."""

    replace(timeline, "enter", enter)
