"""Consistency of reads: the public type, the order of positions, and what a client has seen."""

from __future__ import annotations

import base64
import binascii
import logging
import re
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Final, NamedTuple

from sagastore._checks import invalid, wrong_type
from sagastore._enums import Reads, shown
from sagastore.errors import InvalidArgumentError

__all__ = ["Consistency", "Positions", "covering", "newest", "position_text", "with_consistency"]

_log = logging.getLogger("sagastore")

_LATEST: Final = "latest"
_ANY_REPLICA: Final = "any_replica"
# A position of version 1 has 28 characters. Any later one also needs a log sequence number and the
# identity of the log, so it is longer than a name, and a misspelt name is no position.
_POSITION: Final = re.compile(r"[!-~]{20,512}")
_FIELD: Final = "consistency"

# The format of the server: version, system identifier, timeline, LSN.
_VERSION: Final = 1
_FORMAT: Final = struct.Struct(">BQIQ")


@dataclass(frozen=True, slots=True)
class Consistency:
    """Which state of the store a read must see.

    Methods accept the text as well: `latest`, `any_replica`, or a position. "" is the
    same as `latest`, so that the position of any result can be passed.

    The level matters with read replicas of PostgreSQL, after the migration. Everywhere
    else, each read is answered by the store that holds the latest state.

    - `Consistency.LATEST`: everything that was acknowledged before the read began.
    - `Consistency.at_least(position)`: at least the state at a position, that is, the
      result that had the position and everything before it. A server or replica that
      has not reached it waits, or lets another node answer. `InvalidArgumentError` if
      the position belongs to another PostgreSQL system, `UnavailableError` if no node
      can reach it.
    - `Consistency.ANY_REPLICA`: any state that is not older than the server allows
      (its setting `postgres_replica_max_lag`).

    Attributes:
        text: `latest`, `any_replica`, or a position.

    Raises:
        InvalidArgumentError: The text is none of them.
    """

    text: str

    LATEST: ClassVar[Consistency]
    ANY_REPLICA: ClassVar[Consistency]

    def __post_init__(self) -> None:
        """Normalize and check the text."""
        if not isinstance(self.text, str):
            raise wrong_type(_FIELD, "a Consistency or a str", self.text)
        name = self.text.strip().lower().replace("-", "_") or _LATEST
        if name in {_LATEST, _ANY_REPLICA}:
            object.__setattr__(self, "text", name)
        elif not _POSITION.fullmatch(self.text):
            raise invalid(
                _FIELD, f"{shown(self.text)} is neither latest nor any_replica nor a position"
            )

    @classmethod
    def at_least(cls, position: str) -> Consistency:
        """Require at least the state at a position; "" is the same as `LATEST`.

        Unlike `Consistency(text)`, it accepts no names, so use it for a position that
        comes from outside, such as a cookie.

        Raises:
            InvalidArgumentError: `position` is not a position.
        """
        return cls(position_text(position, "position"))

    def __str__(self) -> str:
        """Return the text."""
        return self.text


Consistency.LATEST = Consistency(_LATEST)
Consistency.ANY_REPLICA = Consistency(_ANY_REPLICA)


def position_text(value: Any, name: str) -> str:
    """Require the text of a position, or ""."""
    if not isinstance(value, str):
        raise wrong_type(name, "a str", value)
    if value and not _POSITION.fullmatch(value):
        raise invalid(name, f"{shown(value)} is not a position")
    return value


class _WalPosition(NamedTuple):
    """A position that this version of the library understands."""

    system: int
    timeline: int
    lsn: int


def _parsed(text: str) -> _WalPosition | None:
    """Return a position of version 1; None for any other text."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, *parts = _FORMAT.unpack(raw)
    except (binascii.Error, struct.error, ValueError):
        return None
    return _WalPosition(*parts) if version == _VERSION else None


def newest(known: str, seen: str) -> str:
    """Return which of two positions covers more: the one known, or the one just received.

    Positions of one system are ordered by timeline, then by log sequence number (LSN). Positions
    that cannot be compared (of another system, or of a version that this library does not know)
    replace the known one: the store has moved, or the server is newer.
    """
    if not seen or seen == known:
        return known
    if not known:
        return seen
    before, after = _parsed(known), _parsed(seen)
    if before is None or after is None or before.system != after.system:
        return seen
    return known if before >= after else seen


def with_consistency(request: Any, consistency: Consistency) -> Any:
    """Return the request with a requirement: a copy, unless it is the default."""
    if consistency.text == _LATEST:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    if consistency.text == _ANY_REPLICA:
        copy.consistency.any_replica = True
    else:
        copy.consistency.at_least = consistency.text
    return copy


def covering(positions: Iterable[str]) -> str:
    """Return a position that covers several; "" if one of them is not known."""
    every = tuple(positions)
    return reduce(newest, every, "") if all(every) else ""


class Positions:
    """The newest position that a client has seen, and what its reads require. Thread-safe.

    If the state that a call has written or seen is not known, there is no position that covers it:
    its response had none, the call failed and may have had an effect, or its error says that the
    store has changed. Session reads then require the latest state, until a call that began later
    and saw the latest state has told its position.
    """

    __slots__ = ("_covered", "_lock", "_newest", "_reads", "_turn")

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._newest = ""
        self._covered = True
        self._turn = 0
        self._lock = threading.Lock()

    @property
    def known(self) -> str:
        """A position that covers everything that the client has seen; "" if there is none."""
        with self._lock:
            return self._newest if self._covered else ""

    @property
    def turn(self) -> int:
        """Number of states so far that were not known; a call takes note of it when it begins."""
        return self._turn

    def note(self, seen: str, began: int = -1) -> None:
        """Record the position of a response; "" if what the call has done or seen is not known.

        Args:
            seen: The position.
            began: `turn` when the call began, if it was a write or saw the latest state.
        """
        if not _POSITION.fullmatch(seen):
            with self._lock:
                self._turn += 1
                self._covered = False
            return
        with self._lock:
            self._newest = newest(self._newest, seen)
            if began == self._turn:
                self._covered = True

    def requirement(self, given: Consistency | None) -> Consistency:
        """Return the requirement of a read that begins now; `given` is that of its caller."""
        if given is not None:
            return given
        if self._reads is Reads.SESSION:
            return Consistency(self.known)
        return Consistency.ANY_REPLICA if self._reads is Reads.ANY_REPLICA else Consistency.LATEST

    def forget(self, refused: Consistency, error: InvalidArgumentError) -> bool:
        """Forget a remembered position that the server refused.

        The store has moved to another PostgreSQL system, or an older server does not know the
        format. Without this, every later read of the client would fail.

        Returns:
            Whether the position was the reason, so that the read can be repeated.
        """
        if not any(one.field.partition(".")[0] == _FIELD for one in error.violations):
            return False
        if refused in {Consistency.LATEST, Consistency.ANY_REPLICA}:
            return False
        with self._lock:
            if self._newest == refused.text:
                self._newest = ""
        _log.warning(
            "the server refuses the position that this client has seen (%s); "
            "the read is repeated with the latest state",
            error,
        )
        return True
