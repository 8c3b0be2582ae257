"""Small files in an open folder: locked, read, and replaced atomically without following links.

All names are relative to the descriptor of the folder, so a folder that is replaced by a link
after it was opened has no effect.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import lock_descriptor

from sagastore_server.runtime.file_rights import change_owner
from sagastore_server.runtime.private_files import NO_LINK, PRIVATE

_POLL_SECONDS = 0.005
"""Time between two attempts to get a lock."""

_HAS_DESCRIPTORS = os.open in os.supports_dir_fd
"""Whether names can be relative to a descriptor; not on Windows, where paths are used."""


class FoundFile(NamedTuple):
    """Content and status of a file at one time."""

    data: bytes
    status: os.stat_result


class Folder:
    """An open folder. A context manager, which closes it."""

    def __init__(self, path: Path) -> None:
        """Open the folder at ``path``.

        Raises:
            OSError: It cannot be opened, or is a link.

        """
        self._path = path
        self._descriptor: int | None = None
        if _HAS_DESCRIPTORS:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def locked(self, name: str, seconds: float) -> Iterator[None]:
        """Hold the lock on the file ``name``, which is created and never removed.

        The operating system releases the lock of a process that ends. Users who can change the
        folder as a group can also lock it.

        Args:
            name: The lock file.
            seconds: Time to wait for the lock.

        Raises:
            TimeoutError: Another process has held it for that time.
            OSError: It cannot be opened, or is a link.

        """
        end = time.monotonic() + seconds
        while True:
            descriptor = self._open_lock(name)
            try:
                # A removed file no longer excludes those who lock a new one of that name.
                if lock_descriptor(descriptor, blocking=False) and self._names(name, descriptor):
                    yield
                    return
                if time.monotonic() > end:
                    raise TimeoutError
            finally:
                os.close(descriptor)
            time.sleep(_POLL_SECONDS)

    def read(self, name: str) -> FoundFile | None:
        """Return a file; None if it does not exist.

        Raises:
            OSError: It cannot be read, or is a link.

        """
        try:
            descriptor = self._open(name, os.O_RDONLY | NO_LINK)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is not a file", name)
            return FoundFile(file.read(), status)

    def write(self, name: str, data: bytes, like: os.stat_result | None) -> None:
        """Create a file with the owner and the permissions of ``like``, and sync it.

        Without ``like``, only the owner has access.

        Raises:
            OSError: It exists, or cannot be written.

        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(self._open(name, flags, PRIVATE), "wb") as file:
            file.write(data)
            file.flush()
            if like is not None and hasattr(os, "fchmod"):
                change_owner(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), like.st_mode & 0o777)
            os.fsync(file.fileno())

    def rename(self, name: str, to: str) -> None:
        """Rename a file, replacing ``to``.

        Raises:
            OSError: It is not possible.

        """
        at = self._descriptor
        os.replace(self._place(name), self._place(to), src_dir_fd=at, dst_dir_fd=at)

    def remove(self, name: str) -> None:
        """Remove a file or a link, if it exists.

        Raises:
            OSError: It is not possible.

        """
        with suppress(FileNotFoundError):
            os.unlink(self._place(name), dir_fd=self._descriptor)

    def sync(self) -> None:
        """Sync the names, if the system supports that."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.fsync(self._descriptor)

    def _open_lock(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT
        try:
            descriptor = self._open(name, flags | os.O_EXCL, PRIVATE)
        except FileExistsError:
            return self._open(name, flags | NO_LINK, PRIVATE)
        if self._descriptor is not None:
            group = os.fstat(self._descriptor).st_mode & stat.S_IWGRP
            os.fchmod(descriptor, PRIVATE | (stat.S_IRGRP | stat.S_IWGRP if group else 0))
        return descriptor

    def _names(self, name: str, descriptor: int) -> bool:
        try:
            found = os.stat(self._place(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(descriptor))

    def _open(self, name: str, flags: int, mode: int = 0) -> int:
        return os.open(self._place(name), flags, mode, dir_fd=self._descriptor)

    def _place(self, name: str) -> str:
        return name if self._descriptor is not None else str(self._path / name)
