"""Attachment: checks that the target belongs to this migration, claims it, reconciles both stores.

Reconciliation is needed after a crash between two commits, and after one of the stores was
restored from a backup.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from sagastore_server.migration.current_state import CurrentState
from sagastore_server.migration.lease import TAKEN_OVER
from sagastore_server.migration.timeouts import bounded
from sagastore_server.storage.errors import Blocker, PreconditionError
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    Lease,
    MigrationSource,
    MigrationTarget,
    TargetRecord,
)

_log = logging.getLogger(__name__)

INSPECT_EVERY = 3.0
"""Seconds between inspections of a lost lease; a live server renews it more often."""


async def attach(
    source: MigrationSource,
    target: MigrationTarget,
    current_state: CurrentState,
    lease: Lease,
    *,
    again: bool = False,
) -> TargetRecord:
    """Claim the target, and store the phase in force in it.

    ``again``: this server has held the lease before. If another server has held it since then,
    the two have acknowledged different writes, and this one must stop.

    Raises:
        PreconditionError: The target belongs to another migration or server, or is newer than
            the source.
        StorageError: The target is unavailable.

    """
    await target.open()
    found = await target.inspect()
    state = current_state.state
    if found.record is None:
        _refuse(
            "TARGET_UNKNOWN",
            f"{target.place} has no record of this migration; give the right --postgres, or change "
            "back to sqlite-only and start again",
        )
    if again and found.record.holder not in {"", lease.holder}:
        _refuse("LEASE_LOST", TAKEN_OVER)
    # The target may have a commit that the event loop has not processed yet.
    await source.flush()
    check(found.record, source, current_state)
    await forget_restoration(source, current_state)
    # A former holder with the same name is dead: this server has locked the file.
    record = await target.claim(lease, source.store_id, state.phase, state.epoch, steal=True)
    base = await _reconcile(source, current_state, record)
    # A compare-and-set: a target that was set back meanwhile has lost changes.
    return await target.set_phase(lease, state.phase, state.epoch, base, after=record.applied)


async def _reconcile(
    source: MigrationSource, current_state: CurrentState, record: TargetRecord
) -> int:
    """Return the sequence up to which the target needs no journal entries."""
    applied = record.applied
    if applied == 0 and record.backfill.state is BackfillState.PENDING:
        # The target is empty, so the backfill copies everything older than the journal. From a
        # target with rows, it could not remove those that were deleted.
        applied = current_state.state.base
    pruned = (await source.journal_status(applied)).pruned
    if applied < pruned:
        _log.warning(
            "PostgreSQL has lost the confirmed changes %d to %d (was a backup restored?); they are "
            "journalled again",
            applied + 1,
            pruned,
        )
        async with current_state.changing:
            await current_state.commit(source, current_state.state, rejournal_after=applied)
    return applied


def check(found: TargetRecord, source: MigrationSource, current_state: CurrentState) -> None:
    """Compare the target's record with the source.

    A source that was restored from a backup counts as old as that backup: its later changes
    reuse the revisions of lost changes.

    Raises:
        PreconditionError: The record is of another source, or of a later state of this one.

    """
    if found.source != source.store_id:
        _refuse(
            "OTHER_MIGRATION",
            "PostgreSQL holds the migration of another SQLite file; give the server the file and "
            "the database that belong together",
        )
    epoch, last = current_state.state.epoch, committed(source, current_state)
    if found.phase is Phase.POSTGRES_ONLY:
        _refuse(
            "SOURCE_IS_OLD",
            f"the migration of {source.place} is complete, so this is an old copy of the file; "
            "start with --postgres alone",
        )
    if found.epoch > epoch or found.applied > last:
        _refuse(
            "SOURCE_IS_OLD",
            f"{source.place} is older than its copy in PostgreSQL (epoch {epoch}, PostgreSQL "
            f"has {found.epoch}; change {last}, PostgreSQL has {found.applied}): it seems to be a "
            "copy or a restored backup; restore the newest file, or give it an empty database",
        )


async def wait_for_lost_lease(target: MigrationTarget, lease: Lease, within: float) -> None:
    """Wait until the lease, if this server has lost it, has expired.

    The lease is also lost if the target was set back to before this server: the record then has
    the lease of an earlier server on the same file, which does not renew it. A lease that is
    renewed belongs to a live server.

    Args:
        target: Where the lease is.
        lease: What this server held.
        within: Seconds that one request may take.

    Raises:
        PreconditionError: LEASE_LOST: another server has taken over.
        StorageError: The target is unavailable.

    """
    last = float("inf")
    await target.open()
    while True:
        record = (await bounded(target.inspect(), within, target.place)).record
        if record is None or (record.holder, record.session) == lease or record.lease_seconds <= 0:
            return
        if record.holder != lease.holder or record.lease_seconds > last - INSPECT_EVERY / 2:
            _refuse("LEASE_LOST", TAKEN_OVER)
        last = record.lease_seconds
        await asyncio.sleep(min(INSPECT_EVERY, last))


def committed(source: MigrationSource, current_state: CurrentState) -> int:
    """Return the last change that the target may have."""
    restored = current_state.state.restored
    return source.committed if restored < 0 else restored


async def forget_restoration(source: MigrationSource, current_state: CurrentState) -> None:
    """Record that the target has no change later than the backup of the source."""
    if current_state.state.restored >= 0:
        async with current_state.changing:
            await current_state.commit(source, current_state.state._replace(restored=-1))


def _refuse(reason: str, detail: str) -> NoReturn:
    raise PreconditionError((Blocker(reason, detail),))
