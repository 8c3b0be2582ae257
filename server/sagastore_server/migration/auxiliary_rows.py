"""Carries over the rows that are no messages."""

from __future__ import annotations

from sagastore_server.storage.replication import (
    AuxiliaryRows,
    Lease,
    MigrationSource,
    MigrationTarget,
)

_ROWS = 200
"""Rows a transaction. A file's row may hold megabytes of text."""


async def carry_all(source: MigrationSource, target: MigrationTarget, lease: Lease) -> None:
    """Make the target's quarantine, files and extra values those of the source.

    Begins anew whenever it is called, so that it can be broken off anywhere.
    """
    await target.carry(lease, AuxiliaryRows(), first=True)
    number = 0
    while rows := await source.quarantine(number, _ROWS):
        await target.carry(lease, AuxiliaryRows(quarantine=rows), first=False)
        number = rows[-1].number
    number = 0
    while files := await source.files(number, _ROWS):
        await target.carry(lease, AuxiliaryRows(files=files), first=False)
        number = files[-1].number
    key = ("", "")
    while extras := await source.extras(key, _ROWS):
        await target.carry(lease, AuxiliaryRows(extras=extras), first=False)
        key = (extras[-1].message_id, extras[-1].name)
