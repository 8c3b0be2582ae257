"""The folder of an output file, held open, in which no link of another user is followed.

Another user who can change a folder on the path could otherwise redirect the output into any file
of the user who runs the command, such as root.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["PRIVATE", "OutputFolder"]

PRIVATE = stat.S_IRUSR | stat.S_IWUSR
"""Permissions of a new file: 0600."""

_HAS_DESCRIPTORS = os.open in os.supports_dir_fd
"""Whether names can be relative to a descriptor; not on Windows, where paths are used."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_MAX_LINKS = 40


class OutputFolder:
    """The folder of `path`, and the name of the file in it.

    Links on the path are followed if they belong to root or to this user, also in place of the
    file itself: then `path` is the file that the link names.

    Args:
        path: The file; it need not exist.

    Raises:
        OSError: The folder cannot be opened, or a link belongs to another user.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        if _HAS_DESCRIPTORS:
            self._descriptor, self.path = _opened(path.expanduser().absolute())
        else:
            self.path = path.expanduser().resolve()
        self.name = self.path.name or "."

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of a file; None if it does not exist. A link is not followed."""
        try:
            return os.stat(self._place(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open_stream(self, name: str) -> int:
        """Open a pipe or a device for writing; a pipe waits for a reader."""
        flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
        return os.open(self._place(name), flags, dir_fd=self._descriptor)

    def open_own(self, name: str) -> int:
        """Open a file for reading and writing; a new one has mode 0600.

        Raises:
            OSError: It belongs to another user, has a second name, or is not a regular file.
        """
        flags = os.O_RDWR | os.O_CREAT | _NO_LINK
        descriptor = os.open(self._place(name), flags, PRIVATE, dir_fd=self._descriptor)
        try:
            _require_own(os.fstat(descriptor), name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read(self, name: str) -> bytes:
        """Return the content of a file of this user.

        Raises:
            OSError: It cannot be read, or belongs to another user.
        """
        flags = os.O_RDONLY | _NO_LINK
        with os.fdopen(os.open(self._place(name), flags, dir_fd=self._descriptor), "rb") as file:
            _require_own(os.fstat(file.fileno()), name)
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Replace a small file atomically; the new one has mode 0600.

        Raises:
            OSError: It cannot be written.
        """
        draft = f".{name}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(self._place(draft), flags, PRIVATE, dir_fd=self._descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.rename(draft, name)
        except BaseException:
            with suppress(OSError):
                self.remove(draft)
            raise

    def rename(self, name: str, to: str) -> None:
        """Rename a file, replacing `to`."""
        at = self._descriptor
        os.replace(self._place(name), self._place(to), src_dir_fd=at, dst_dir_fd=at)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(self._place(name), dir_fd=self._descriptor)

    def sync(self) -> None:
        """Sync the names, if the system supports it."""
        with suppress(OSError):
            here = "." if self._descriptor is not None else str(self.path.parent)
            descriptor = os.open(here, os.O_RDONLY, dir_fd=self._descriptor)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _place(self, name: str) -> str:
        return name if self._descriptor is not None else str(self.path.with_name(name))


def _require_own(found: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", name)
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_nlink != 1):
        raise OSError(errno.EPERM, "it belongs to another user or has a second name", name)


def _opened(path: Path) -> tuple[int, Path]:
    """Open the folder of an absolute path name by name; return it and the path without links."""
    parts = list(reversed(path.parts[1:]))
    current = Path("/")
    folder = _open_folder("/", None)
    links = 0
    try:
        while parts:
            name = parts.pop()
            target = _own_link(name, folder)
            if target is not None:
                links += 1
                _require_few(links, path)
                parts.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
                if target.is_absolute():
                    folder, current = _step("/", folder), Path("/")
            elif parts:
                folder = _step(name, folder)
                current = current.parent if name == ".." else current / name
            else:
                current /= name
    except BaseException:
        os.close(folder)
        raise
    return folder, current


def _require_few(links: int, path: Path) -> None:
    if links > _MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _own_link(name: str, folder: int) -> Path | None:
    """Return the target of a link of root or of this user; None if it is no link."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(found.st_mode):
        return None
    if found.st_uid not in {0, os.geteuid()}:
        raise OSError(errno.EPERM, f"the link {name} belongs to another user", name)
    return Path(os.readlink(name, dir_fd=folder))


def _step(name: str, folder: int) -> int:
    """Open a folder in `folder`, and close that."""
    inner = _open_folder(name, folder)
    os.close(folder)
    return inner


def _open_folder(name: str, folder: int | None) -> int:
    # O_PATH: the permission to search a folder suffices.
    flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=folder)
