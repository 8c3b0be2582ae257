"""Comparing what two stores hold, while both are being written to.

A difference that is seen once says nothing: the journal may not have come to it. What
is here tells a difference that lasts from one that passes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from sagastore_server.storage.migration import Mismatch
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import AuxiliaryTally

Reach = Callable[[int, float], Awaitable[bool]]
"""Waits until the journal has been applied up to a sequence, for so many seconds; tells
whether it was."""

MISSING, EXTRA, DIFFERENT = "MISSING", "EXTRA", "DIFFERENT"

_CARRIED = {"quarantine": "quarantine", "files": "files", "extras": "legacy_extra"}
"""Kinds of what is carried along, and how they are called in a report."""


def fields_that_differ(one: Message, other: Message) -> tuple[str, ...]:
    """Name the fields whose values differ, in their order."""
    values = zip(Message._fields, one, other, strict=True)
    return tuple(name for name, a, b in values if a != b)


def mismatch_of(message_id: str, truth: Message | None, copy: Message | None) -> Mismatch:
    """Describe how ``copy`` differs from ``truth``; they do differ."""
    if truth is None:
        return Mismatch(message_id, EXTRA, ())
    if copy is None:
        return Mismatch(message_id, MISSING, ())
    return Mismatch(message_id, DIFFERENT, fields_that_differ(truth, copy))


def carried_mismatches(truth: AuxiliaryTally, copy: AuxiliaryTally) -> Iterator[Mismatch]:
    """Describe how what was carried along differs, kind by kind."""
    for kind, name in _CARRIED.items():
        one, other = getattr(truth, kind), getattr(copy, kind)
        fields = tuple(
            field for field in ("rows", "digest") if getattr(one, field) != getattr(other, field)
        )
        if fields:
            yield Mismatch(name, DIFFERENT, fields)


class Divergence:
    """Tells whether a difference lasts, from looking at both stores again and again.

    A look is: the truth; then, once everything committed by then has been applied, the
    copy; then the truth again. It shows a difference if the truth was the same both
    times and the copy was not that. But a message that did not exist at either time may
    have existed in between, and a commit can be seen a moment before its sequence is
    known. So two looks in a row, a pause between them, must show the same difference:
    the second cannot be explained by anything that the first one met.
    """

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.looks = 0
        """How often it was looked."""
        self._last: int | None = None

    def look(self, truth: object, copy: object, again: object) -> bool | None:
        """Judge by a further look.

        Returns:
            True: a lasting difference. False: none. None: look again, after a pause.

        """
        self.looks += 1
        if copy in (truth, again):
            return False
        if truth != again:
            self._last = None
            return None
        # Of values that may be large, what is kept until the next look is a hash.
        seen = hash((truth, copy))
        if seen == self._last:
            return True
        self._last = seen
        return None

    @property
    def pause(self) -> float:
        """Seconds until it makes sense to look again; grows while nothing settles."""
        return min(0.02 * 2.0 ** min(self.looks - 1, 10), 2.0)
