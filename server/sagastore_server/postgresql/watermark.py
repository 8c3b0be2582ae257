"""Watermark: what a standby of PostgreSQL is known to have replayed.

A read that must see a position is checked against a watermark that was read before its statement
began. In one statement, PostgreSQL may take the snapshot before it evaluates the position, so the
check would pass for changes that the snapshot lacks.

A standby that restarts can go back: it accepts reads before it has replayed everything again. So a
watermark is only valid for a connection that was open before the watermark was read.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from sagastore_server.interfaces.consistency import WalPosition

_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()), oid::bigint,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    inet_server_addr()::text, inet_server_port()
FROM pg_database WHERE datname = current_database()
"""
"""The start of a server in microseconds tells servers apart that have the same address, as those
behind a load balancer do."""

_REPLAY = """
SELECT replay.is_standby, replay.lsn, receiver.pid, receiver.received_tli,
    pg_wal_lsn_diff(receiver.flushed_lsn, '0/0')::bigint AS flushed,
    extract(epoch FROM clock_timestamp() - receiver.last_msg_receipt_time)::float8 AS silence
FROM (
    SELECT pg_is_in_recovery() AS is_standby,
        pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint AS lsn
    OFFSET 0
) AS replay LEFT JOIN LATERAL (
    SELECT pid, received_tli, flushed_lsn, last_msg_receipt_time FROM pg_stat_wal_receiver
    WHERE replay.is_standby
) AS receiver ON true
"""
"""Reads the timeline after the LSN (LATERAL), so that it is never too low for the LSN: a timeline
that is too high only makes a read wait. A role without ``pg_read_all_stats`` sees only the pid of
the receiver. ``pg_control_checkpoint`` would show a new timeline only after a checkpoint."""

_RECORD = 16 * 1024
"""Bytes of the record that is being replayed, at most. Its transaction is visible before the LSN
shows that. A commit takes some 100 bytes, and 16 more for each object that it creates or drops."""

_UNSIGNED = 2**64


class Identity(NamedTuple):
    """Which server of PostgreSQL answers, and which database."""

    system: int
    """System identifier of the cluster, unsigned."""
    database: int
    """OID of the database."""
    started: int
    """Start of the server, in microseconds since 1970."""
    address: str | None
    """Address of the server as it sees it; None on a Unix socket."""
    port: int | None

    def is_server_of(self, other: Identity) -> bool:
        """Return whether the server is the same, however it was reached."""
        return (self.system, self.started) == (other.system, other.started)

    @property
    def data(self) -> tuple[int, int]:
        """Identify the data, which all servers of a cluster have in common."""
        return self.system, self.database


async def identity_of(connection: Any) -> Identity:
    """Return the identity of the server and database that answer ``connection``.

    Raises:
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``;
            InsufficientPrivilegeError if the role may not see it.

    """
    system, *rest = await connection.fetchrow(_IDENTITY)
    return Identity(int(system) % _UNSIGNED, *rest)


class Watermark(NamedTuple):
    """What one server had replayed at one time."""

    identity: Identity
    begun: float
    """`time.monotonic` before it was read."""
    ended: float
    """`time.monotonic` after it was read."""
    is_standby: bool
    timeline: int
    """Timeline of the WAL receiver; 0: no receiver, or hidden from this role."""
    lsn: int
    """Bytes replayed."""
    has_receiver: bool
    silence: float
    """Seconds since the last message to the receiver."""

    def reaches(self, position: WalPosition) -> bool:
        """Return whether the server has everything up to ``position``.

        A position of an earlier timeline is compared by its LSN, too: on the later timeline, the
        same bytes up to its beginning are followed by others.
        """
        return (
            position.system == self.identity.system
            and position.timeline <= self.timeline
            and position.lsn <= self.lsn
        )


async def watermark_of(connection: Any, identity: Identity) -> Watermark:
    """Read the watermark of the server that answers ``connection``.

    Raises:
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

    """
    begun = time.monotonic()
    is_standby, lsn, pid, timeline, _, silence = await connection.fetchrow(_REPLAY)
    return Watermark(
        *(identity, begun, time.monotonic(), is_standby, timeline or 0, lsn or 0),
        has_receiver=pid is not None,
        silence=silence or 0.0,
    )


def located(sql: str) -> str:
    """Return a read-only statement with the position of its answer as an additional last column.

    As ``positions.located``, for a standby.
    """
    # Safe to join: the statements are constants of this package.
    return (
        "SELECT answer.*, here.place FROM (\n"  # noqa: S608
        "SELECT format('%s %s %s', lsn, flushed, received_tli) AS place\n"
        f"FROM ({_REPLAY}) AS read OFFSET 0) AS here LEFT JOIN (\n{sql}\n) AS answer ON true"
    )


def position_of(identity: Identity, place: str) -> WalPosition | None:
    """Return the position for the additional column of `located`: at least what the read has seen.

    None if that is not known: the server has no receiver, so it may be no standby any more, or it
    replays from an archive.
    """
    lsn, flushed, timeline = place.split(" ")
    if not timeline or int(flushed or 0) < int(lsn):
        return None
    # What is replayed was flushed before.
    seen = min(int(lsn) + _RECORD, int(flushed))
    return WalPosition(identity.system, int(timeline), seen)
