"""The enumerations of the public API."""

from __future__ import annotations

import reprlib
from enum import IntEnum, StrEnum
from typing import Self

__all__ = [
    "BackfillPace",
    "BackfillState",
    "Durability",
    "MismatchKind",
    "OnConflict",
    "Order",
    "Phase",
    "Reads",
    "ServingStatus",
    "Store",
    "shown",
]


def shown(value: object) -> str:
    """Return a value for an error: short, in one line; of other types only the type."""
    if value is None or isinstance(value, str | int | float):
        return reprlib.repr(value)
    return type(value).__name__


class _Wire(IntEnum):
    """An enumeration with the values of the protocol.

    A value from a newer server that this version does not know becomes UNKNOWN,
    if the enumeration has that member.
    """

    @classmethod
    def _missing_(cls, value: object) -> _Wire | None:
        unknown = cls.__members__.get("UNKNOWN")
        return unknown if isinstance(value, int) else None

    @classmethod
    def of(cls, value: Self | str) -> Self:
        """Return a member, or the member with a name such as `dual-write`.

        Raises:
            ValueError: No member has that name; the error lists the names.
        """
        if isinstance(value, cls):
            return value
        name = value.strip().upper().replace("-", "_") if isinstance(value, str) else ""
        if name in cls.__members__ and name != "UNKNOWN":
            return cls[name]
        names = ", ".join(member.label for member in cls if member.name != "UNKNOWN")
        raise ValueError(f"{shown(value)} is not one of {names}")

    @property
    def label(self) -> str:
        """The name in lower case with hyphens, as the command line uses it."""
        return self.name.lower().replace("_", "-")

    def __str__(self) -> str:
        """Return the name, not the number."""
        return self.name


class Durability(_Wire):
    """The stores that must have committed a write before the call returns.

    Methods accept the name as well: `primary`, `both`.
    """

    PRIMARY = 1
    """The store that acknowledges writes in the current phase."""
    BOTH = 2
    """Every store that the current phase writes to."""


class Store(_Wire):
    """A store that can hold messages."""

    UNKNOWN = 0
    """A store that this version of the library does not know."""
    SQLITE = 1
    POSTGRESQL = 2


class OnConflict(_Wire):
    """What a bulk save does with a message whose id is already stored.

    Methods accept the name as well: `replace`, `skip`.
    """

    REPLACE = 1
    """Replace the stored message; an equal message changes nothing."""
    SKIP = 2
    """Keep the stored message."""


class Order(_Wire):
    """The order of search results.

    Methods accept the name as well: `relevance`, `newest`, `oldest`.
    """

    RELEVANCE = 1
    """Best match first; newest first if the query is empty."""
    NEWEST = 2
    """By timestamp, newest first, then by sequence descending."""
    OLDEST = 3
    """By timestamp, oldest first, then by sequence ascending."""


class Reads(_Wire):
    """The state that the reads of a client see, unless a call says otherwise.

    The constructors of the clients accept the name as well: `latest`, `session`,
    `any_replica`. See `Consistency` for what each level means.
    """

    LATEST = 1
    """Everything that was acknowledged before the read began."""
    SESSION = 2
    """At least the newest state that the client has seen in any response."""
    ANY_REPLICA = 3
    """Any state that is not older than the server allows."""

    @property
    def label(self) -> str:
        """The name in lower case."""
        return self.name.lower()


class Phase(_Wire):
    """A phase of the migration from SQLite to PostgreSQL, in order.

    Methods accept the name as well, such as `dual-write`.
    """

    UNKNOWN = 0
    """A phase that this version of the library does not know."""
    SQLITE_ONLY = 1
    """SQLite is the only store."""
    DUAL_WRITE = 2
    """SQLite acknowledges writes; they are replicated to PostgreSQL."""
    BACKFILL = 3
    """Like DUAL_WRITE; existing rows are also copied and verified."""
    READ_POSTGRES = 4
    """Both stores acknowledge writes; PostgreSQL serves reads, SQLite is the fallback."""
    POSTGRES_ONLY = 5
    """PostgreSQL is the only store. This phase cannot be reversed."""

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Return the phase with a name such as `dual-write`.

        Raises:
            ValueError: No phase has that name; the error lists the phases.
        """
        try:
            return cls.of(text)
        except ValueError:
            names = ", ".join(p.label for p in cls if p is not cls.UNKNOWN)
            raise ValueError(f"{shown(text)} is not a phase; the phases are {names}") from None


class BackfillState(_Wire):
    """The state of the backfill."""

    UNKNOWN = 0
    """A state that this version of the library does not know."""
    PENDING = 1
    """Not started."""
    RUNNING = 2
    """Copying rows or building indexes."""
    PAUSED = 3
    """Paused by an operator."""
    DONE = 4
    """All rows are copied and all indexes built."""
    FAILED = 5
    """Stopped by an error; see `Backfill.error`."""


class BackfillPace(_Wire):
    """What limits the pace of the backfill."""

    UNKNOWN = 0
    """No rows are being copied, or the server does not tell."""
    FULL = 1
    """Nothing: batch follows batch."""
    OPERATOR = 2
    """The limit `max_rows_per_second` of the operator."""
    LATENCY = 3
    """A pause of its own, because batches slowed down the writes of clients."""
    LOAD = 4
    """A short pause while clients write."""


class ServingStatus(_Wire):
    """The health that a server reports (grpc.health.v1)."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    """The server is starting, draining, or cannot reach what it needs."""
    SERVICE_UNKNOWN = 3


class MismatchKind(StrEnum):
    """How a row differs between the stores."""

    MISSING = "MISSING"
    """Only in SQLite."""
    EXTRA = "EXTRA"
    """Only in PostgreSQL."""
    DIFFERENT = "DIFFERENT"
    """In both, with different fields."""
    UNKNOWN = "UNKNOWN"
    """A kind that this version of the library does not know."""

    @classmethod
    def _missing_(cls, value: object) -> MismatchKind | None:
        return cls.UNKNOWN if isinstance(value, str) else None
