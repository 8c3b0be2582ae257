"""Copies the auxiliary rows (quarantine, extra values) to the target.

The rows are replaced in several transactions. The target's mark shows if they are complete
(`BackfillMark.carried`): it is cleared, under a new number of the attempt, before the first of
them, and set after the last. Each transaction checks the mark, so one of an earlier attempt that
is executed late, for example after its connection seemed lost, changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from sagastore_server.migration.lease import TargetSession
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    MigrationSource,
    MigrationTarget,
)

_ROWS = 200
"""Rows per transaction. A quarantined row may have megabytes of text."""


async def carry_all(
    source: MigrationSource, target: MigrationTarget, session: TargetSession
) -> None:
    """Replace the target's quarantine and extra values by those of the source.

    Each call starts from the beginning, so it can be interrupted at any point. Afterwards
    ``carried`` is not set yet: see ``finish_carrying``. The caller holds ``session.marking``.
    """
    attempt = session.mark.attempt + 1
    await session.copy([], session.mark._replace(carried=False, attempt=attempt))
    mark = session.mark
    await target.carry(session.lease, AuxiliaryRows(), first=True, mark=mark)
    async for rows in all_auxiliary_rows(source):
        await target.carry(session.lease, rows, first=False, mark=mark)


async def all_auxiliary_rows(source: MigrationSource) -> AsyncGenerator[AuxiliaryRows, None]:
    """Yield the auxiliary rows of the source, some at a time."""
    number = 0
    while rows := await source.quarantine(number, _ROWS):
        yield AuxiliaryRows(quarantine=rows)
        number = rows[-1].number
    key = ("", "")
    while extras := await source.extras(key, _ROWS):
        yield AuxiliaryRows(extras=extras)
        key = (extras[-1].message_id, extras[-1].name)


async def finish_carrying(session: TargetSession) -> None:
    """Note in the target that its auxiliary rows are complete."""
    await session.copy([], session.mark._replace(carried=True))
