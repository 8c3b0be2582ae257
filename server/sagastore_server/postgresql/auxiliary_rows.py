"""Auxiliary rows in the migration target: quarantine and extra values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagastore_server.postgresql.batch import columns_of
from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import MIGRATION
from sagastore_server.storage.auxiliary_rows import (
    AuxiliaryTallier,
    extra_values,
    quarantine_values,
)
from sagastore_server.storage.replication import AuxiliaryRows, AuxiliaryTally, Tally

_AT_A_TIME = 50
"""Rows per fetch; the text of a file may be large."""


async def store(connection: Connection, rows: AuxiliaryRows, *, first: bool) -> None:
    """Store rows, in a transaction that holds the lease; ``first`` removes the existing ones."""
    if first:
        await connection.execute(MIGRATION["delete_auxiliary_rows"])
    await _store(connection, "upsert_quarantine", list(map(quarantine_values, rows.quarantine)))
    await _store(connection, "upsert_extras", list(map(extra_values, rows.extras)))


async def _store(connection: Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        await connection.execute(MIGRATION[statement], *columns_of(rows))


async def tally(connection: Connection) -> AuxiliaryTally:
    """Count and digest the auxiliary rows, in a transaction with one snapshot."""
    # Sorting all rows may take longer than the statement timeout.
    await connection.execute("SET LOCAL statement_timeout = 0")
    return AuxiliaryTally(
        await _tally(connection, "all_quarantine"),
        await _tally(connection, "all_extras"),
    )


async def _tally(connection: Connection, statement: str) -> Tally:
    tallier = AuxiliaryTallier()
    cursor = await connection.cursor(MIGRATION[statement])
    while rows := await cursor.fetch(_AT_A_TIME):
        tallier.add_all(map(tuple, rows))
    return tallier.tally()
