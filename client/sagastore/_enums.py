"""The enumerations of the public API."""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = [
    "BackfillState",
    "Durability",
    "MismatchKind",
    "OnConflict",
    "Order",
    "Phase",
    "ServingStatus",
    "Store",
]


class _Wire(IntEnum):
    """An enumeration whose values are those of the protocol.

    A value that this version of the library does not know, sent by a newer
    server, reads as the member UNKNOWN where the enumeration has one.
    """

    @classmethod
    def _missing_(cls, value: object) -> _Wire | None:
        unknown = cls.__members__.get("UNKNOWN")
        return unknown if isinstance(value, int) else None

    @property
    def label(self) -> str:
        """The name as people type it: lower case, words joined by hyphens."""
        return self.name.lower().replace("_", "-")

    def __str__(self) -> str:
        """Return the name, not the number."""
        return self.name


class Durability(_Wire):
    """When a write counts as done."""

    PRIMARY = 1
    """When the store that acknowledges in the migration's phase has committed."""
    BOTH = 2
    """When every store of the migration's phase has committed."""


class Store(_Wire):
    """A store that can hold messages."""

    UNKNOWN = 0
    """A store that this version of the library does not know."""
    SQLITE = 1
    POSTGRESQL = 2


class OnConflict(_Wire):
    """What a bulk save does with an id that is stored already."""

    REPLACE = 1
    """The message sent replaces the stored one; an equal one changes nothing."""
    SKIP = 2
    """The stored message stays."""


class Order(_Wire):
    """The order of search results."""

    RELEVANCE = 1
    """Best first; newest first where the query is empty."""
    NEWEST = 2
    """By timestamp, newest first, then by id descending."""
    OLDEST = 3
    """By timestamp, oldest first, then by id ascending."""


class Phase(_Wire):
    """A phase of the migration from SQLite to PostgreSQL, in order."""

    UNKNOWN = 0
    """A phase that this version of the library does not know."""
    SQLITE_ONLY = 1
    """SQLite alone."""
    DUAL_WRITE = 2
    """SQLite acknowledges; PostgreSQL follows."""
    BACKFILL = 3
    """As DUAL_WRITE, while existing rows are copied and verified."""
    READ_POSTGRES = 4
    """Both acknowledge; PostgreSQL is read, SQLite is the fallback."""
    POSTGRES_ONLY = 5
    """PostgreSQL alone. There is no way back from here."""

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Read a phase as people type it, for example `dual-write`.

        Raises:
            ValueError: No phase has that name; the error lists those that are.
        """
        phase = cls.__members__.get(text.strip().upper().replace("-", "_"))
        if phase is None or phase is cls.UNKNOWN:
            names = ", ".join(p.label for p in cls if p is not cls.UNKNOWN)
            raise ValueError(f"{text!r} is not a phase; the phases are {names}")
        return phase


class BackfillState(_Wire):
    """What the copying of existing rows is doing."""

    UNKNOWN = 0
    """A state that this version of the library does not know."""
    PENDING = 1
    """Not begun."""
    RUNNING = 2
    """Copying."""
    PAUSED = 3
    """Held by an operator."""
    DONE = 4
    """All rows are copied and all indexes built."""
    FAILED = 5
    """Stopped by an error; see `Backfill.error`."""


class ServingStatus(_Wire):
    """What a server says of its own health (grpc.health.v1)."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    """The server is starting, draining, or cannot reach what it needs."""
    SERVICE_UNKNOWN = 3


class MismatchKind(StrEnum):
    """How a row differs between the stores."""

    MISSING = "MISSING"
    """In SQLite only."""
    EXTRA = "EXTRA"
    """In PostgreSQL only."""
    DIFFERENT = "DIFFERENT"
    """In both, with different fields."""
    UNKNOWN = "UNKNOWN"
    """A kind that this version of the library does not know."""

    @classmethod
    def _missing_(cls, value: object) -> MismatchKind | None:
        return cls.UNKNOWN if isinstance(value, str) else None
