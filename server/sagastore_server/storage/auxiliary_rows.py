"""Counts and digests of auxiliary rows, computed identically for every store.

Rows are fed in the order and with the columns given below; two stores that hold the
same rows then have the same digest, whatever their databases are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sagastore_server.storage.model import QuarantinedRow
from sagastore_server.storage.replication import ExtraValue, Tally

Value = str | int | None


class AuxiliaryTallier:
    """Computes a tally from a stream of rows in constant memory.

    The rows of each kind, and the order in which they are added:

    * quarantine, by ``number``: ``number, source_key, reason, field, row``, the row as
      text (``quarantine_values``);
    * extra values, by the UTF-8 bytes of ``message_id``, then of ``name``: every field
      of ``ExtraValue``, in the order of the class (``extra_values``).

    What is digested of a row: the number of its values in decimal and a line feed, then
    each value as ``n`` (None), ``i`` and the integer in decimal, or ``s``, the number
    of bytes in decimal, ``:`` and the UTF-8 bytes; and a line feed after each. So no two
    different rows are spelled alike.
    """

    def __init__(self) -> None:
        """Start without rows."""
        self._rows = 0
        self._digest = hashlib.sha256()

    def add(self, row: tuple[Value, ...]) -> None:
        """Add the next row."""
        self._rows += 1
        self._digest.update(b"%d\n" % len(row) + b"".join(map(_spelled, row)))

    def add_all(self, rows: Iterable[tuple[Value, ...]]) -> None:
        """Add the next rows."""
        for row in rows:
            self.add(row)

    def tally(self) -> Tally:
        """Return the tally of the rows added so far; the digest in lower-case hexadecimal."""
        return Tally(self._rows, self._digest.hexdigest())


def quarantine_values(row: QuarantinedRow) -> tuple[Value, ...]:
    """Return the digested values of a quarantined row."""
    return (*row[:4], row.row.decode())


def extra_values(row: ExtraValue) -> tuple[Value, ...]:
    """Return the digested values of an extra value."""
    return tuple(row)


def _spelled(value: Value) -> bytes:
    if value is None:
        return b"n\n"
    if isinstance(value, int):
        return b"i%d\n" % value
    text = value.encode()
    return b"s%d:%s\n" % (len(text), text)
