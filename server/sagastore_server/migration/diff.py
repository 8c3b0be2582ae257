"""Comparison of two stores during writes: lasting differences against transient ones.

A difference that is seen once proves nothing, because the journal may not be applied so far.
`Divergence` decides which differences last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from sagastore_server.migration.records import Row
from sagastore_server.storage.migration import Mismatch
from sagastore_server.storage.replication import AuxiliaryTally

Reach = Callable[[int, float], Awaitable[bool]]
"""Waits until the journal is applied up to a sequence, for a number of seconds; returns whether
it is."""

MISSING, EXTRA, DIFFERENT = "MISSING", "EXTRA", "DIFFERENT"

_CARRIED = {"quarantine": "quarantine", "extras": "legacy_extra"}
"""Kinds of auxiliary rows, and their names in reports."""


def fields_that_differ(one: Row, other: Row) -> tuple[str, ...]:
    """Return the names of the fields that differ, in order."""
    values = zip(one._fields, one, other, strict=True)
    return tuple(name for name, a, b in values if a != b)


def mismatch_of(name: str, truth: Row | None, copy: Row | None) -> Mismatch:
    """Describe how ``copy`` differs from ``truth``; they must differ."""
    if truth is None:
        return Mismatch(name, EXTRA, ())
    if copy is None:
        return Mismatch(name, MISSING, ())
    return Mismatch(name, DIFFERENT, fields_that_differ(truth, copy))


def carried_mismatches(truth: AuxiliaryTally, copy: AuxiliaryTally) -> Iterator[Mismatch]:
    """Yield a mismatch for each kind of auxiliary rows that differs."""
    for kind, name in _CARRIED.items():
        one, other = getattr(truth, kind), getattr(copy, kind)
        fields = tuple(
            field for field in ("rows", "digest") if getattr(one, field) != getattr(other, field)
        )
        if fields:
            yield Mismatch(name, DIFFERENT, fields)


class Divergence:
    """Decides whether a difference lasts, from repeated observations of both stores.

    An observation reads the source, waits until everything committed by then is applied, reads
    the target, and reads the source again. It shows a difference if both reads of the source are
    equal and the target differs.

    One observation can be wrong: a message may have existed only between the two reads of the
    source, and a commit is visible shortly before its sequence is known. So two consecutive
    observations, with a pause between them, must show the same difference.
    """

    def __init__(self) -> None:
        """Start without observations."""
        self.looks = 0
        """Number of observations."""
        self._last: int | None = None

    def look(self, truth: object, copy: object, again: object) -> bool | None:
        """Add an observation.

        Returns:
            True: a lasting difference. False: none. None: observe again after `pause`.

        """
        self.looks += 1
        if copy in (truth, again):
            return False
        if truth != again:
            self._last = None
            return None
        # The values may be large, so only a hash is kept until the next observation.
        seen = hash((truth, copy))
        if seen == self._last:
            return True
        self._last = seen
        return None

    @property
    def pause(self) -> float:
        """Seconds until the next observation; grows with their number."""
        return min(0.02 * 2.0 ** min(self.looks - 1, 10), 2.0)
