"""Lease on the migration target: the record of the migration, and the only permission to write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from sagastore_server.postgresql import indexes
from sagastore_server.postgresql.compatibility import Compatibility
from sagastore_server.postgresql.ddl_locks import TableLocks
from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import MIGRATION
from sagastore_server.postgresql.schema import host_of, upgrade
from sagastore_server.storage.errors import (
    Blocker,
    FencedError,
    PreconditionError,
    TargetSetBackError,
)
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import BackfillMark, Lease, TargetRecord

LEASE_SECONDS = 10.0
"""Seconds after which the lease of a silent holder expires, by the clock of the database."""

GUARDED = (
    "messages",
    "sessions",
    "tombstones",
    "quarantine",
    "files",
    "file_tombstones",
    "legacy_extra",
)
"""Tables that only the holder of the lease may write, in the order of locking."""


class Claim(NamedTuple):
    """Request for the lease."""

    lease: Lease
    source: str
    phase: Phase
    epoch: int
    steal: bool
    """The former holder of the same name is known to be dead."""


def record_from_row(row: Sequence[Any]) -> TargetRecord:
    """Return the record of a row in the column order of migration.sql."""
    source, phase, epoch, holder, session, seconds, applied, state, *mark = row[:14]
    return TargetRecord(
        source,
        Phase(phase),
        epoch,
        holder,
        session,
        seconds,
        applied,
        BackfillMark(BackfillState(state), *mark),
    )


async def hold(
    connection: Connection,
    lease: Lease,
    applied: int = 0,
    after: int | None = None,
    *,
    compatibility: Compatibility,
) -> TargetRecord:
    """Check the lease and lock the record, as the first statement of a transaction.

    It extends the lease and raises the stored position to ``applied``. The transaction may then
    write messages.

    Raises:
        FencedError: Another holder has the lease.
        TargetSetBackError: The stored position is not ``after``.
        OutdatedServerError: A newer server has upgraded the schema.

    """
    row = await connection.fetchrow(MIGRATION["hold"], *lease, LEASE_SECONDS, applied, after)
    if row is None:
        if after is not None:
            # Either the lease or the position differs: checking the lease alone shows which.
            record = await hold(connection, lease, compatibility=compatibility)
            raise set_back(f"change {record.applied}", f"change {after}")
        raise FencedError(
            "another server holds the lease of the migration to PostgreSQL, so this one must not "
            "write; stop this server"
        )
    compatibility.check(row["compatible_from"])
    return record_from_row(row)


def set_back(found: str, expected: str) -> TargetSetBackError:
    """Return the error for a target that is not at the position where this server left it."""
    return TargetSetBackError(
        f"PostgreSQL is at {found} and not at {expected}, where this server left it, possibly "
        "because a backup was restored; the server compares both stores again automatically"
    )


def check_mark(record: TargetRecord, before: BackfillMark | None, least: int = 0) -> None:
    """Compare the stored record with the expected backfill mark and the least position.

    Raises:
        TargetSetBackError: The mark differs, or the position is lower.

    """
    if before is not None and record.backfill != before:
        raise set_back(_place(record.backfill), _place(before))
    if record.applied < least:
        raise set_back(f"change {record.applied}", f"change {least}")


def _place(mark: BackfillMark) -> str:
    return f"backfill {mark.state.value}, row {mark.copied:,} of {mark.total:,}"


async def note_mark(connection: Connection, mark: BackfillMark) -> None:
    """Store the backfill mark, in a transaction that holds the lease."""
    await connection.execute(MIGRATION["set_mark"], mark.state.value, *mark[1:])


async def take(
    locks: TableLocks, claim: Claim, place: str, compatibility: Compatibility
) -> TargetRecord:
    """Create or upgrade the schema and take the lease, within a transaction.

    Raises:
        PreconditionError: LEASE_HELD, TARGET_NOT_EMPTY, OTHER_MIGRATION or
            MIGRATION_FINISHED.
        CannotOpenError: Foreign tables, or a schema that this server cannot use.
        asyncpg.LockNotAvailableError: A table is in use.

    """
    connection = locks.connection
    await upgrade(locks)
    row = await connection.fetchrow(MIGRATION["lock_record"])
    if row is None:
        await _begin(locks, claim, place)
    else:
        _check(record_from_row(row), claim, place)
    await connection.execute(MIGRATION["take_record"], *claim.lease)
    if await connection.fetchval(MIGRATION["guards"]) != len(GUARDED):
        await locks.take(GUARDED)
        await connection.execute(MIGRATION["make_guard"])
        await locks.end_limit()
    return await hold(connection, claim.lease, compatibility=compatibility)


async def _begin(locks: TableLocks, claim: Claim, place: str) -> None:
    """Create the record if the store is empty."""
    connection = locks.connection
    # Checked before the lock, so that a store in use is not blocked, and after it, to be safe.
    await _check_empty(connection, place)
    await locks.take(GUARDED)
    await _check_empty(connection, place)
    await connection.execute(MIGRATION["clear_leftovers"])
    await indexes.drop(connection)
    await connection.execute(MIGRATION["new_record"], *claim[1:4], *claim.lease)
    await locks.end_limit()


async def _check_empty(connection: Connection, place: str) -> None:
    found = [row[0] for row in await connection.fetch(MIGRATION["contents"])]
    if found:
        _refuse(
            "TARGET_NOT_EMPTY",
            f"{place} already contains {' and '.join(found)} that did not come from this SQLite "
            "file; use an empty database or a separate schema",
        )


def _check(record: TargetRecord, claim: Claim, place: str) -> None:
    """Refuse a claim that conflicts with the record."""
    if record.source != claim.source:
        _refuse(
            "OTHER_MIGRATION",
            f"{place} is the target of another SQLite file; use the database and the file that "
            "belong together",
        )
    if record.phase is Phase.POSTGRES_ONLY:
        _refuse(
            "MIGRATION_FINISHED",
            f"the migration to {place} is finished, so the messages are in PostgreSQL; start with "
            "--postgres alone",
        )
    former = Lease(record.holder, record.session)
    dead = claim.steal and former.holder == claim.lease.holder
    if former not in {claim.lease, Lease("", "")} and not dead and record.lease_seconds > 0:
        _refuse(
            "LEASE_HELD",
            f"the server on {host_of(former.holder)} holds the lease of the migration to {place} "
            f"for another {math.ceil(record.lease_seconds)} s; stop that server, or wait until the "
            "lease expires",
        )


def _refuse(reason: str, detail: str) -> NoReturn:
    raise PreconditionError((Blocker(reason, detail),))
