"""Bounded temporary copy of a compressed or piped database, and a bounded reader of xz."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import stat
from pathlib import Path
from typing import IO, Any, Final

from sagastore.cli.failures import CommandError

__all__ = ["DEFAULT_LIMIT", "GIB", "Decompressed", "XzReader", "copy_bounded", "database_size"]

GIB: Final = 1 << 30

DEFAULT_LIMIT: Final = 16 * GIB
"""Bytes of the largest temporary copy. A gzip file of 16 MB can inflate to 16 GB (zlib's FAQ
states a factor of up to 1032)."""

_SPARE: Final = 256 << 20
"""Bytes that a copy leaves free on the disk."""

_CHUNK: Final = 1 << 20
_CHECK_EVERY: Final = 64 << 20
"""Bytes between two checks of the free space."""

_HEADER: Final = 100
"""Bytes of the header of a database."""

_XZ_MEMORY: Final = 256 << 20
"""Bytes that the decompression of xz may use; `xz -9` needs 65 MiB (xz(1))."""


def copy_bounded(name: str, text: io.BufferedReader, target: Path, limit: int) -> None:
    """Write the rest of `text` to the new file `target`.

    Args:
        name: The name of the source for messages to the user.
        text: The decompressed database.
        target: The file.
        limit: Bytes of the largest copy.

    Raises:
        CommandError: The copy is larger, or the disk of `target` has too little space.
        OSError, EOFError, lzma.LZMAError, zlib.error: The source is damaged, or the file cannot
            be written.
    """
    _check(name, target, database_size(text.peek(_HEADER)), limit)
    done = checked = 0
    with os.fdopen(_created(target), "wb") as file:
        while chunk := text.read(_CHUNK):
            done += len(chunk)
            if done > limit or done - checked >= _CHECK_EVERY:
                _check(name, target, done, limit, written=checked)
                checked = done
            file.write(chunk)


def _created(path: Path) -> int:
    """Create a file for its owner only, whatever the umask is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR)


def database_size(head: bytes) -> int:
    """Return the bytes of a database by its header; 0 if the header does not state them.

    See sqlite.org/fileformat2.html, 1.3: the page size, and the number of pages, which is valid
    if the change counter equals the number of the change that wrote it.
    """
    if len(head) < _HEADER or head[24:28] != head[92:96]:
        return 0
    page = int.from_bytes(head[16:18], "big")
    return (65_536 if page == 1 else page) * int.from_bytes(head[28:32], "big")


def _check(name: str, target: Path, size: int, limit: int, *, written: int = 0) -> None:
    if size > limit:
        raise CommandError(
            f"{name} is a database of more than {limit / GIB:,.3g} GiB, of which import would "
            "write a temporary copy; raise --temp-limit, or decompress it to a file and import that"
        )
    free = shutil.disk_usage(target.parent).free
    if size - written + _SPARE > free:
        raise CommandError(
            f"{name} needs a temporary copy of {size / GIB:,.3g} GiB or more, and "
            f"{target.parent.parent} has {free / GIB:,.3g} GiB free; set TMPDIR to a folder of "
            "another disk, or decompress it to a file there and import that"
        )


class Decompressed(io.RawIOBase):
    """Decompressed bytes of a file.

    Args:
        file: The compressed file, or its reader.
    """

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the compressed file can be read again."""
        return bool(self._file.seekable())


class XzReader(Decompressed):
    """Decompressed bytes of an xz file, with bounded memory; `lzma.LZMAFile` has no bound.

    Raises `lzma.LZMAError` while reading a damaged file or one that needs more memory.

    Args:
        file: The compressed file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._begin()

    def _begin(self) -> None:
        self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        self._position = 0
        self._ended = False

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._ended:
            data = self._decompress(len(view))
            if data:
                view[: len(data)] = data
                self._position += len(data)
                return len(data)
        return 0

    def _decompress(self, size: int) -> bytes:
        given = b""
        if self._decompressor.eof:
            given = self._next_stream()
            if not given:
                self._ended = True
                return b""
            self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        elif self._decompressor.needs_input:
            given = self._file.read(_CHUNK)
            if not given:
                raise EOFError("the compressed data ends early")
        try:
            return self._decompressor.decompress(given, size)
        except lzma.LZMAError as exc:
            if "Memory usage limit" not in str(exc):
                raise
            raise lzma.LZMAError(
                f"decompression needs more than {_XZ_MEMORY >> 20} MiB of memory; decompress it "
                "to a file and import that"
            ) from exc

    def _next_stream(self) -> bytes:
        """Return the begin of the next stream; empty at the end. There may be padding before."""
        given = self._decompressor.unused_data.lstrip(b"\0")
        while not given:
            read = self._file.read(_CHUNK)
            if not read:
                break
            given = read.lstrip(b"\0")
        return given

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Decompress up to an offset from the start, if necessary from the start again."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("seek from another place than the start")
        if offset < self._position:
            self._file.seek(0)
            self._begin()
        while self._position < offset:
            if not self.read(min(_CHUNK, offset - self._position)):
                break
        return self._position

    def tell(self) -> int:
        """Return the number of decompressed bytes before the position."""
        return self._position
