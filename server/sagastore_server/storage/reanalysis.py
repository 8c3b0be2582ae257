"""Progress of the analysis of stored messages by a newer version, and the version of an index."""

from __future__ import annotations

import re
from typing import NamedTuple

from sagastore_server.storage.errors import CannotOpenError

ANALYSIS_STATE = "analysis"
"""Name of the state of a store that has the analysis version of its index."""


class Reanalysis(NamedTuple):
    """Progress of the analysis of the stored messages by a newer version."""

    done: int
    """Messages that have been analysed again, or need not be."""
    total: int
    """Messages to go through."""


def analysis_version(stored: str | None) -> int:
    """Return the analysis version of an index from the state of its store; 0: unknown.

    Up to version 2 the version is followed by the versions of packages (``2/snowball-…``).
    """
    found = re.match(r"[0-9]+", stored or "")
    return int(found[0]) if found else 0


def refuse_newer_analysis(place: str, stored: int, supported: int) -> None:
    """Refuse a store whose index a newer version has made.

    This version could not find its terms, nor remove them.

    Raises:
        CannotOpenError: The index is newer.

    """
    if stored > supported:
        raise CannotOpenError(
            f"cannot use {place}: its search index has the analysis version {stored}, newer than "
            f"{supported}, the newest that this server supports; run the server that wrote it"
        )
