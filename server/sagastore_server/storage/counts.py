"""Counts of both stores of a migration at one revision.

While writes continue, the target lags behind the source by some journal entries, so plain counts
of the two differ although nothing is wrong. Here the target is counted in one snapshot, which has
a position in the journal, and the source in a later one; the rows that the source has changed
since that position are left out of its count, and what the target has of them is added instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple


class RecordCounts(NamedTuple):
    """Numbers of records."""

    messages: int
    sessions: int
    files: int


class PendingRecords(NamedTuple):
    """The source in one snapshot, and what it has changed since a position of the journal."""

    counts: RecordCounts
    """All records of the source."""
    stored: RecordCounts
    """Those among the ids below that the source has."""
    messages: Sequence[str]
    sessions: Sequence[str]
    files: Sequence[str]


class CommonCounts(NamedTuple):
    """Numbers of records of both stores at one revision."""

    revision: int
    source: RecordCounts
    target: RecordCounts


PendingSince = Callable[[int], Awaitable[PendingRecords | None]]
"""Returns what has changed since a position of the journal; see ``CountingSource``."""


class CountingSource:
    """The part of `MigrationSource` that counts."""

    async def pending_records(self, after: int, limit: int) -> PendingRecords | None:
        """Count all records, and list those with a journal entry after the sequence ``after``.

        Returns:
            None if there are more than ``limit`` entries, if the journal was pruned beyond
            ``after``, or if the store does not support it.

        """
        del after, limit
        return None


class CountingTarget:
    """The part of `MigrationTarget` that counts."""

    async def count_beside(self, pending_since: PendingSince) -> CommonCounts | None:
        """Count the records of both stores at the target's position in the journal.

        ``pending_since`` is called with the position while the snapshot is held.

        Returns:
            None if it returned None, if there is no migration, or if the store does not support
            it.

        Raises:
            StorageError: The store does not answer.

        """
        del pending_since
        return None


def at_position(
    position: int, target: RecordCounts, target_pending: RecordCounts, pending: PendingRecords
) -> CommonCounts:
    """Return the counts at ``position``.

    Args:
        position: The position of the target in the journal.
        target: All records of the target.
        target_pending: Those of the pending records that the target has.
        pending: The pending records of the source.

    """
    source = RecordCounts(
        *(
            counted - changed + held
            for counted, changed, held in zip(
                pending.counts, pending.stored, target_pending, strict=True
            )
        )
    )
    return CommonCounts(position, source, target)
