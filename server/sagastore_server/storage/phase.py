"""The five phases of a migration, and what each means.

Everything that depends on the phase asks it; nothing compares phases by hand. The
table that this follows is in docs/reference/migration.md.
"""

from __future__ import annotations

import enum

from sagastore_server.storage.model import Store

_BOTH = (Store.SQLITE, Store.POSTGRESQL)


class Phase(enum.IntEnum):
    """Phase of a migration from SQLite to PostgreSQL; the numbers are those of the protocol."""

    SQLITE_ONLY = 1
    DUAL_WRITE = 2
    BACKFILL = 3
    READ_POSTGRES = 4
    POSTGRES_ONLY = 5

    @property
    def slug(self) -> str:
        """The name on the command line: ``read-postgres``."""
        return self.name.lower().replace("_", "-")

    @property
    def journals(self) -> bool:
        """Whether SQLite journals its changes for PostgreSQL."""
        return self in {Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES}

    @property
    def copies(self) -> bool:
        """Whether the backfill copies the rows older than the journal."""
        return self is Phase.BACKFILL

    @property
    def completes_copy(self) -> bool:
        """Whether an incomplete copy is continued.

        True in READ_POSTGRES as well: a target that was set back may lack a part of the copy.
        """
        return self in {Phase.BACKFILL, Phase.READ_POSTGRES}

    @property
    def reads_postgres(self) -> bool:
        """Whether PostgreSQL answers reads while it is available and has every write."""
        return self >= Phase.READ_POSTGRES

    @property
    def writes_sqlite(self) -> bool:
        """Whether every write goes to SQLite first. Such a phase is reversible."""
        return self is not Phase.POSTGRES_ONLY

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores that hold messages in this phase."""
        if self is Phase.SQLITE_ONLY:
            return (Store.SQLITE,)
        return (Store.POSTGRESQL,) if self is Phase.POSTGRES_ONLY else _BOTH

    @property
    def following(self) -> Phase | None:
        """The phase after this one."""
        return None if self is Phase.POSTGRES_ONLY else Phase(self + 1)

    @property
    def preceding(self) -> Phase | None:
        """The previous phase, if it can be returned to."""
        return None if self in {Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY} else Phase(self - 1)
