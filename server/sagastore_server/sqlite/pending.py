"""The messages that a reanalysis has not reached yet.

Separate from ``reanalysis``, because every group of writes must know them.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from sagastore_server.sqlite.queries import QUERIES


class Pending(NamedTuple):
    """The numbers of the messages that are in the former index unless they were changed."""

    cursor: int
    """The last number that was analysed again."""
    upto: int
    """The last number when the analysis began."""

    def has(self, number: int) -> bool:
        """Return whether a number is pending."""
        return self.cursor < number <= self.upto

    @property
    def any(self) -> bool:
        """Whether messages may be pending."""
        return self.cursor < self.upto


def load_pending(connection: sqlite3.Connection) -> Pending:
    """Return which messages are pending."""
    cursor, upto = connection.execute(QUERIES["pending"]).fetchone()
    return Pending(cursor, upto)
