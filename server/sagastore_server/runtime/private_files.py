"""Files and folders that only their owner can use, and a group that the operator chose.

A name is created exclusively, and never opened through a symbolic link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from sagastore_server.runtime.file_rights import change_owner

PRIVATE = stat.S_IRUSR | stat.S_IWUSR
"""Mode of a new file: 0600."""

_GROUP = stat.S_IRGRP | stat.S_IWGRP
_OTHERS = stat.S_IRWXO
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags for opening an existing name: no link is followed, and a pipe does not block."""


def mode_like(found: os.stat_result) -> int:
    """Return the mode of a file with the same content: owner and group as there, others nothing."""
    return PRIVATE | found.st_mode & _GROUP


def create(path: Path, like: os.stat_result | None = None) -> int:
    """Create an empty file and return its descriptor, open for writing.

    Args:
        path: The file.
        like: A file whose group and group permissions the new file gets. Without, or if this
            user may not set that group, only the owner has access.

    Raises:
        FileExistsError: The name exists, also as a link.
        OSError: The file cannot be created.

    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        if like is not None and hasattr(os, "fchmod") and like.st_mode & _GROUP:
            with contextlib.suppress(PermissionError):
                change_owner(descriptor, -1, like.st_gid)
                os.fchmod(descriptor, mode_like(like))
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def make_folder(path: Path) -> None:
    """Create a folder and the missing ones above it with mode 0700.

    ``Path.mkdir(parents=True)`` gives its mode to the last one only.

    Raises:
        OSError: It cannot be created.

    """
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)


def write_new(path: Path, data: bytes) -> None:
    """Write a file in place of an earlier one or of a link; not atomic.

    Raises:
        OSError: The file cannot be written.

    """
    try:
        descriptor = create(path)
    except FileExistsError:
        path.unlink()
        descriptor = create(path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def read_plain(path: Path, limit: int) -> bytes:
    """Return the first ``limit`` bytes of a regular file.

    Raises:
        OSError: It is a link or no regular file, or cannot be read.

    """
    with os.fdopen(os.open(path, os.O_RDONLY | NO_LINK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read(limit)


def close_to_others(path: Path) -> bool:
    """Remove the permissions of all users but the owner and the group; return whether any were.

    Only the owner of the file and root can do that. For others, and for a missing file, nothing
    happens. No connection of this process may have the file open: see ``sqlite.files``.
    """
    if not hasattr(os, "fchmod"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_LINK)
    except OSError:
        return False
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or not mode & _OTHERS:
            return False
        os.fchmod(descriptor, stat.S_IMODE(mode) & ~_OTHERS)
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
