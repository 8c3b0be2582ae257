"""Permissions of a store: its files are readable for their owner and, at most, one group.

SQLite gives ``-wal``, ``-shm`` and ``-journal`` the permissions of the database file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from sagastore_server.runtime.private_files import close_to_others, create

SIDE_FILES = ("-wal", "-shm", "-journal")

_log = structlog.get_logger(__name__)


def make_private(path: Path) -> None:
    """Create a missing file with mode 0600; remove other users' access to an existing one.

    The access of the group stays: it is how an operator gives another program access. No
    connection of this process may be open; see ``files``.

    Raises:
        OSError: The file cannot be created.

    """
    real = path.resolve()
    if not real.exists():
        with contextlib.suppress(FileExistsError):
            os.close(create(real))
        return
    files = [real.with_name(real.name + suffix) for suffix in ("", *SIDE_FILES)]
    closed = [file.name for file in files if close_to_others(file)]
    if closed:
        _log.warning(
            "removed the access of other users to the store",
            files=closed,
            do="give access by a group: chgrp, chmod g+r",
        )
