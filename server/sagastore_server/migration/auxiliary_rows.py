"""Copies the auxiliary rows (quarantine, extra values) to the target.

The rows are replaced in several transactions. The target's mark shows if they are complete
(`BackfillMark.carried`): it is cleared before the first of them, and set after the last. Each
transaction is a compare-and-set of the mark and raises its number (`BackfillMark.attempt`), so it
changes nothing if the rows of the transaction before it are not there: if it belongs to an earlier
attempt and is executed late, for example after its connection seemed lost, or if the target was
set back meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from sagastore_server.migration.lease import TargetSession
from sagastore_server.storage.replication import AuxiliaryRows, BackfillMark, MigrationSource

_ROWS = 200
"""Rows per transaction. A quarantined row may have megabytes of text."""


async def carry_all(source: MigrationSource, session: TargetSession) -> BackfillMark:
    """Replace the target's quarantine and extra values by those of the source.

    Each call starts from the beginning, so it can be interrupted at any point. Afterwards
    ``carried`` is not set yet: ``finish_carrying`` sets it in the mark that is returned. The
    caller holds ``session.marking``.
    """
    mark = await _step(session, AuxiliaryRows(), session.mark, first=True)
    async for rows in all_auxiliary_rows(source):
        mark = await _step(session, rows, mark)
    return mark


async def _step(
    session: TargetSession, rows: AuxiliaryRows, before: BackfillMark, *, first: bool = False
) -> BackfillMark:
    mark: BackfillMark = before._replace(carried=False, attempt=before.attempt + 1)
    await session.carry(rows, mark, before, first=first)
    return mark


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


async def finish_carrying(session: TargetSession, before: BackfillMark, least: int = 0) -> None:
    """Note in the target that its auxiliary rows are complete.

    Args:
        session: The session of the target.
        before: The mark of the last step.
        least: The journal position that the target must have reached.

    """
    await session.copy([], before._replace(carried=True), before, least)
