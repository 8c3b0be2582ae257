"""Record of the last backups of a store, which metrics report."""

from __future__ import annotations

from typing import NamedTuple


class BackupRecord(NamedTuple):
    """Outcome of the last backups of a store. Times are seconds since 1970; 0 means never."""

    succeeded_at: float = 0.0
    """End of the last backup that was verified."""
    failed_at: float = 0.0
    """Time of the last backup that failed."""
    interval: float = 0.0
    """Seconds between scheduled backups (``backup --every``); 0 if unknown."""
    size: int = 0
    """Bytes of the last backup that was verified."""
    seconds: float = 0.0
    """Duration of that backup, with its verification."""
