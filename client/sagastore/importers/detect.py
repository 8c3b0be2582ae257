"""Detection of a file's format by its content, not by its name."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, cast

from sagastore.cli.failures import CommandError
from sagastore.importers.base import Source
from sagastore.importers.database import open_database
from sagastore.importers.foreign import HEAD_BYTES, check_format, explain_damage
from sagastore.importers.jsonl import BROKEN, JsonLines
from sagastore.importers.spool import DEFAULT_LIMIT, Decompressed, XzReader, copy_bounded

__all__ = ["open_source"]

_SQLITE: Final = b"SQLite format 3\x00"
_ENOUGH: Final = 16


class _Buffered(Decompressed):
    """Decompressed bytes of gzip or bzip2; all bytes before damage are read before it is reported.

    The buffer of `io.BufferedReader` around the readers of the standard library would discard them.
    """

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data: bytes = self._file.read1(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Decompress up to an offset."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the number of decompressed bytes before the position."""
        return int(self._file.tell())


_COMPRESSED: Final[dict[bytes, Callable[[Any], io.RawIOBase]]] = {
    b"\x1f\x8b": lambda file: _Buffered(gzip.GzipFile(fileobj=file)),
    b"\xfd7zXZ\x00": XzReader,
    b"BZh": lambda file: _Buffered(bz2.BZ2File(file)),
}


def open_source(file: str, limit: int = DEFAULT_LIMIT) -> Source:
    """Open a file to import.

    Args:
        file: A path, or `-` for standard input.
        limit: Bytes of the largest temporary copy of a compressed or piped database.

    Raises:
        CommandError: The file cannot be read, its format is not supported, or its temporary copy
            would exceed the limit or the free space.
    """
    if file == "-":
        return _recognize("standard input", _standard_input(), None, limit)
    try:
        path = Path(file).expanduser().resolve(strict=True)
        raw: IO[bytes] = path.open("rb", buffering=0)
    except OSError as exc:
        raise CommandError(f"cannot read {file}: {exc.strerror}") from None
    except (RuntimeError, ValueError) as exc:
        # No such user, a loop of symbolic links, or U+0000.
        raise CommandError(f"cannot read {file}: {exc}") from None
    is_file = stat.S_ISREG(os.fstat(raw.fileno()).st_mode)
    return _recognize(file, raw, path if is_file else None, limit)


def _standard_input() -> IO[bytes]:
    # Not sys.stdin: the reader thread may hold its lock when the process ends.
    try:
        raw = io.FileIO(0, closefd=False)
        return raw if raw.seekable() else cast("IO[bytes]", _Pipe(raw))
    except OSError as exc:
        raise CommandError(f"cannot read standard input: {exc.strerror}") from None


class _Pipe(io.RawIOBase):
    """A pipe whose first read returns enough bytes to detect the format."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self._raw = raw
        self._begun = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 at the end."""
        view = memoryview(buffer)
        size = 0
        while True:
            got = self._raw.readinto(view[size:]) or 0
            size += got
            if self._begun or not got or size >= _ENOUGH:
                self._begun = True
                return size


def _recognize(name: str, raw: IO[bytes], path: Path | None, limit: int) -> Source:
    outer = io.BufferedReader(cast("Any", raw), 1 << 16)
    with contextlib.ExitStack() as stack:
        stack.enter_context(raw)
        try:
            text = _decompressed(outer)
            head = text.peek(HEAD_BYTES)
        except BROKEN as exc:
            raise _damaged_start(name, exc) from None
        if head.startswith(_SQLITE):
            if text is not outer or path is None:
                return _spooled(name, text, path, limit)
            # Before SQLite opens it: closing the file later would release SQLite's locks.
            raw.close()
            return open_database(name, path, path)
        check_format(name, head, path)
        stack.pop_all()
    # For compressed text, only the compressed file tells the progress.
    return JsonLines(name, text, path, None if text is outer else raw)


def _decompressed(file: io.BufferedReader) -> io.BufferedReader:
    """Return the decompressed text, or the file itself if it is not compressed."""
    head = file.peek(6)
    for mark, opener in _COMPRESSED.items():
        if head.startswith(mark):
            return io.BufferedReader(opener(file), 1 << 18)
    return file


def _damaged_start(name: str, error: Exception) -> CommandError:
    """Return the error for a file that is compressed by its first bytes only."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error)):
        reason = f"it starts like a compressed file, but is damaged ({reason}); get it again"
    return CommandError(f"cannot read {name}: {reason}")


def _spooled(name: str, text: io.BufferedReader, path: Path | None, limit: int) -> Source:
    """Copy a piped or compressed database to a temporary file, which SQLite requires."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sagastore-"))
        copy = Path(folder) / "import.db"
        try:
            copy_bounded(name, text, copy, limit)
        except BROKEN as exc:
            raise explain_damage(name, exc) from None
        source = open_database(name, copy, path)
        source.on_close = stack.pop_all().close
        return source
