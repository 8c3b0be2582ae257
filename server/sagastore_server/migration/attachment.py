"""Finds out whether the target is the one that this migration goes to, and takes it.

Also where the two stores are brought together again after a crash between them, or
after one of them was restored from a backup.
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

LOOK_EVERY = 3.0
"""Seconds between two looks at a lease that was lost: a server renews it more often."""


async def attach(
    source: MigrationSource,
    target: MigrationTarget,
    current_state: CurrentState,
    lease: Lease,
    *,
    again: bool = False,
) -> TargetRecord:
    """Take the target, and make both stores agree on the phase.

    ``again``: this server has held it before. If another one did since then, the two have
    acknowledged different writes, and this one must not go on.

    Raises:
        PreconditionError: It is not ours to take, or the source is older than it.
        StorageError: It cannot be reached.

    """
    await target.open()
    found = await target.inspect()
    state = current_state.state
    if found.record is None:
        _refuse(
            "TARGET_UNKNOWN",
            f"{target.place} knows nothing of this migration; give the right --postgres, or go "
            "back to sqlite-only and begin again",
        )
    if again and found.record.holder not in {"", lease.holder}:
        _refuse("LEASE_LOST", TAKEN_OVER)
    # The target may have a commit that the event loop has not heard of yet.
    await source.flush()
    check(found.record, source, current_state)
    await forget_restoration(source, current_state)
    # Whoever held it under the name of this file is dead: the file is locked, by us.
    record = await target.claim(lease, source.store_id, state.phase, state.epoch, steal=True)
    base = await _reconcile(source, current_state, record)
    # Should it have been set back meanwhile, this must not declare applied what it lost.
    return await target.set_phase(lease, state.phase, state.epoch, base, after=record.applied)


async def _reconcile(
    source: MigrationSource, current_state: CurrentState, record: TargetRecord
) -> int:
    """Return up to which sequence the target needs nothing from the journal."""
    applied = record.applied
    if applied == 0 and record.backfill.state is BackfillState.PENDING:
        # Nothing was ever stored there. What is older than the journal, the backfill copies;
        # of a target that has rows it could not take away what was deleted.
        applied = current_state.state.base
    pruned = (await source.journal_status(applied)).pruned
    if applied < pruned:
        _log.warning(
            "PostgreSQL has lost changes %d to %d, which it had confirmed (was a backup "
            "restored?); they are journalled again",
            applied + 1,
            pruned,
        )
        async with current_state.changing:
            await current_state.commit(source, current_state.state, rejournal_after=applied)
    return applied


def check(found: TargetRecord, source: MigrationSource, current_state: CurrentState) -> None:
    """Compare what the target remembers with the source.

    A source that was restored from a backup counts as old as that backup: what it has been
    given since has the numbers of changes that were lost.

    Raises:
        PreconditionError: It remembers another source, or a later state of this one.

    """
    if found.source != source.store_id:
        _refuse(
            "OTHER_MIGRATION",
            "PostgreSQL holds the migration of another SQLite file; give the server the "
            "database, or the file, that belong together",
        )
    epoch, last = current_state.state.epoch, committed(source, current_state)
    if found.phase is Phase.POSTGRES_ONLY:
        _refuse(
            "SOURCE_IS_OLD",
            f"the messages of {source.place} have moved to PostgreSQL for good, so this is an old "
            "copy of the file; start with --postgres alone",
        )
    if found.epoch > epoch or found.applied > last:
        _refuse(
            "SOURCE_IS_OLD",
            f"{source.place} is older than what PostgreSQL has seen of it (epoch {epoch} against "
            f"{found.epoch}, change {last} against {found.applied}): it seems to be a "
            "copy or a restored backup; put the newest file back, or give it an empty database",
        )


async def wait_for_lost_lease(target: MigrationTarget, lease: Lease, within: float) -> None:
    """Wait until a lease that this server lost, if it did, is held by nobody.

    It may have been lost because the target was set back to before this server: the record
    names an earlier server on the same file then, which is gone, and does not renew it. A
    lease that is renewed has a server.

    Args:
        target: Where the lease is.
        lease: What this server held.
        within: Seconds that one question may take.

    Raises:
        PreconditionError: LEASE_LOST: another server has taken over.
        StorageError: The target cannot be asked.

    """
    last = float("inf")
    await target.open()
    while True:
        record = (await bounded(target.inspect(), within, target.place)).record
        if record is None or (record.holder, record.session) == lease or record.lease_seconds <= 0:
            return
        if record.holder != lease.holder or record.lease_seconds > last - LOOK_EVERY / 2:
            _refuse("LEASE_LOST", TAKEN_OVER)
        last = record.lease_seconds
        await asyncio.sleep(min(LOOK_EVERY, last))


def committed(source: MigrationSource, current_state: CurrentState) -> int:
    """Return the last change that the target may know of."""
    restored = current_state.state.restored
    return source.committed if restored < 0 else restored


async def forget_restoration(source: MigrationSource, current_state: CurrentState) -> None:
    """Note that the target has seen nothing later than the backup the source came from."""
    if current_state.state.restored >= 0:
        async with current_state.changing:
            await current_state.commit(source, current_state.state._replace(restored=-1))


def _refuse(reason: str, detail: str) -> NoReturn:
    raise PreconditionError((Blocker(reason, detail),))
