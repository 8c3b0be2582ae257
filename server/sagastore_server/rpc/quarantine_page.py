"""Pages of the quarantine, whose rows may be of any size."""

from __future__ import annotations

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.model import QuarantinedRow

_ROWS_AT_ONCE = 25
"""Rows read in one go, which bounds what is in memory beyond the page."""


async def quarantine_page(
    backend: StorageBackend, size: int, after: int
) -> tuple[list[QuarantinedRow], bool]:
    """Read a page of at most ``size`` rows and, but for one row, MAX_PAGE_BYTES.

    Returns:
        The rows, and whether there are more behind them.

    """
    page: list[QuarantinedRow] = []
    room = MAX_PAGE_BYTES
    while True:
        last = page[-1].number if page else after
        rows = await backend.quarantine(last, min(size + 1 - len(page), _ROWS_AT_ONCE))
        for row in rows:
            room -= _size(row)
            if page and (room < 0 or len(page) == size):
                return page, True
            page.append(row)
        if not rows:
            return page, False


def _size(row: QuarantinedRow) -> int:
    """Return about the bytes that a row takes in an answer; never too few."""
    return len(row.row) + 4 * (len(row.source_key) + len(row.reason) + len(row.field)) + 64
