"""Copies the auxiliary rows (quarantine, files, extra values) to the target."""

from __future__ import annotations

from sagastore_server.storage.replication import (
    AuxiliaryRows,
    Lease,
    MigrationSource,
    MigrationTarget,
)

_ROWS = 200
"""Rows per transaction. A single file may have megabytes of text."""


async def carry_all(source: MigrationSource, target: MigrationTarget, lease: Lease) -> None:
    """Replace the target's quarantine, files and extra values by those of the source.

    Each call starts from the beginning, so it can be interrupted at any point.
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
