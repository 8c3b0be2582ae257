"""Consistency: which state of the store a read must see, and which state a call has seen.

A call sets its requirement before it reads (`require`), and a store with read replicas looks it up
(`required`). Stores that tell positions note them as they read and write (`note`); the highest
one becomes the ``position`` of the response (`noted`). Both are part of the context of the call, so
that the storage contract does not carry them through every method, and a store without replicas
ignores them. Outside of a call, reads see the latest state and nothing is noted.
"""

from __future__ import annotations

import base64
import binascii
import enum
import struct
from typing import NamedTuple

from sagastore_server.interfaces.call_context import current

_VERSION = 1
_FORMAT = struct.Struct(">BQIQ")
_CHARACTERS = 28
"""Length of a position: 21 bytes in base64."""


class WalPosition(NamedTuple):
    """A position in the write-ahead log (WAL) of a PostgreSQL cluster.

    Positions of one cluster are ordered by timeline, then by LSN.
    """

    system: int
    """System identifier of the cluster, an unsigned number of 64 bits."""
    timeline: int
    """Timeline: grows with every promotion of a standby."""
    lsn: int
    """Byte in the log (log sequence number)."""

    def encoded(self) -> str:
        """Return the position as clients get it: opaque text with a version."""
        return base64.urlsafe_b64encode(_FORMAT.pack(_VERSION, *self)).decode()


def decoded(text: str) -> WalPosition:
    """Return the position that `WalPosition.encoded` returned as ``text``.

    Raises:
        ValueError: ``text`` is none.

    """
    if len(text) != _CHARACTERS:
        raise ValueError("not a position")
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        version, *parts = _FORMAT.unpack(raw)
    except (binascii.Error, struct.error, UnicodeEncodeError) as exc:
        raise ValueError("not a position") from exc
    position = WalPosition(*parts)
    # Python also accepts the other base64 alphabet; only the spelling of `encoded` is valid.
    if version != _VERSION or position.encoded() != text:
        raise ValueError("not a position")
    return position


class Level(enum.Enum):
    """Kind of a requirement."""

    LATEST = "latest"
    """Everything that was acknowledged before the read began."""
    AT_LEAST = "at_least"
    """At least the state of a position."""
    ANY_REPLICA = "any_replica"
    """Any state that is not older than the server allows."""


class Consistency(NamedTuple):
    """Requirement of a read."""

    level: Level = Level.LATEST
    position: WalPosition | None = None
    """The position, with `Level.AT_LEAST`."""
    seen: WalPosition | None = None
    """What the caller has seen already, in the preceding page or earlier in the call: the read must
    not be older. Unlike ``position``, it may belong to a cluster that is no longer used; then the
    latest state is read."""


LATEST = Consistency()


def require(consistency: Consistency) -> None:
    """Set the requirement of the running call."""
    call = current()
    if call is not None:
        call.consistency = consistency


def is_required() -> bool:
    """Return whether the running call names a requirement, be it the latest state."""
    call = current()
    return call is not None and call.consistency is not None


def follow(seen: WalPosition | None) -> None:
    """Require that the running call reads nothing older than the preceding page of its result.

    Args:
        seen: The position of that page; None: not known, so the latest state is required.

    """
    call = current()
    if call is None or call.consistency is None or call.consistency.level is Level.LATEST:
        return
    call.consistency = LATEST if seen is None else call.consistency._replace(seen=seen)


def required() -> Consistency:
    """Return the requirement of the next read of the running call.

    Of several reads in one call, a later one must not be older than an earlier one.
    """
    call = current()
    if call is None or call.consistency is None:
        return LATEST
    wanted, noted_already = call.consistency, call.position
    if wanted.level is Level.LATEST or noted_already is None:
        return wanted
    if wanted.seen is None or noted_already[1:] > wanted.seen[1:]:
        return wanted._replace(seen=noted_already)
    return wanted


def note(position: WalPosition | None) -> None:
    """Record that the running call has written, or seen, the state at ``position``.

    With None, a position that includes everything the call has written and seen is not known: it
    has none then, whatever else is noted.
    """
    call = current()
    if call is None:
        return
    if position is None:
        call.is_position_lost = True
    elif call.position is None or position[1:] > call.position[1:]:
        call.position = position


def noted() -> WalPosition | None:
    """Return the position that includes all that the running call has noted; None: not known."""
    call = current()
    return None if call is None or call.is_position_lost else call.position
