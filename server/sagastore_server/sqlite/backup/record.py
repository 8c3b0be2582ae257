"""Record of the last backups: a small file beside the store, which the server reads for metrics.

The backup command is another process than the server, and may end between two backups. Both can
access the folder of the store, so the record is there.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from sagastore_server.interfaces.backups import BackupRecord
from sagastore_server.runtime.file_rights import FileRights
from sagastore_server.runtime.folders import Folder
from sagastore_server.runtime.private_files import read_plain

_SUFFIX = ".backup.json"
_DRAFT = ".new"
_MAX_BYTES = 4096
"""Bytes read of a record, which has about 150."""


def record_path(path: Path) -> Path:
    """Return the file with the record of the store at ``path``."""
    real = path.resolve()
    return real.with_name(real.name + _SUFFIX)


def read_record(path: Path) -> BackupRecord | None:
    """Return the record of the store at ``path``; None if there is none, or it is unreadable."""
    try:
        found = json.loads(read_plain(record_path(path), _MAX_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    numbers = [found.get(name, 0) for name in BackupRecord._fields]
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
        return None
    return BackupRecord(*numbers)


def write_record(path: Path, record: BackupRecord) -> None:
    """Replace the record of the store at ``path`` atomically, with mode 0600.

    Root writes with the rights of the user who controls the store; see ``file_rights``.

    Raises:
        OSError: It cannot be written.

    """
    data = json.dumps(record._asdict()).encode() + b"\n"
    with FileRights(path).taken():
        target = record_path(path)
        draft = target.name + _DRAFT
        with Folder(target.parent) as folder:
            folder.remove(draft)  # Left by a killed process.
            folder.write(draft, data, None)
            folder.rename(draft, target.name)
