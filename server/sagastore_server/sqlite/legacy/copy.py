"""The verified copy that is made before a legacy file is changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from hashlib import blake2b
from pathlib import Path

from sagastore_server.sqlite.files import connect, damage, open_read_only, quoted, scalar
from sagastore_server.storage.errors import CannotOpenError

SUFFIX = ".before-sagastore"
"""The copy of ``memory.db`` is ``memory.db.before-sagastore``, beside it."""

_PARTIAL = ".partial"
_PAGES_AT_ONCE = 4096

_GROWTH = 2
"""Room that the takeover is given beside the copy, in sizes of the file.

The new tables and their index stand beside the old ones until the end (1.0 of the
file with 200,000 messages of dialogue), and the rollback journal keeps what was
changed of the old pages (0.2).
"""

_SPARE_BYTES = 16 * 1024 * 1024


def bytes_needed(connection: sqlite3.Connection, *, with_copy: bool = True) -> int:
    """Return the free bytes that a takeover asks of the disk; it seldom uses them all."""
    pages = scalar(connection, "PRAGMA page_count")
    size = pages * scalar(connection, "PRAGMA page_size")
    return size * (_GROWTH + with_copy) + _SPARE_BYTES


def bytes_free(path: Path) -> int:
    """Return the free bytes of the disk that holds the file."""
    return shutil.disk_usage(path.parent).free


def verified_copy(path: Path, original: sqlite3.Connection) -> Path:
    """Return a copy beside ``path`` that was read back and found equal.

    A copy that is there already, from an earlier attempt, is kept if it is equal;
    if it is not, it is kept as well, and the new one gets a number. ``original`` is
    a connection that keeps other writers out; ``path`` has no links in it.

    Raises:
        CannotOpenError: There is no room, or what was written reads back otherwise.
        sqlite3.Error: The file cannot be read, or the copy not written.
        OSError: The copy cannot be written.

    """
    wanted = fingerprint(original)
    partial = path.with_name(path.name + SUFFIX + _PARTIAL)
    partial.unlink(missing_ok=True)
    target = path.with_name(path.name + SUFFIX)
    number = 1
    while target.exists():
        if _is_copy(target, wanted):
            _check_room(path, bytes_needed(original, with_copy=False))
            return target
        number += 1
        target = path.with_name(f"{path.name}{SUFFIX}-{number}")
    _check_room(path, bytes_needed(original))
    try:
        _write(path, partial)
        _require_copy(partial, wanted)
        partial.replace(target)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return target


def fingerprint(connection: sqlite3.Connection, table: str | None = None) -> bytes:
    """Return a digest of every value, with its storage class, of one table or of all.

    Of all tables means the schema and each ordinary table; what virtual tables
    keep is not looked at.
    """
    usual = connection.text_factory
    digest = blake2b(digest_size=32)
    try:
        connection.text_factory = str
        names = [table] if table else _ordinary_tables(connection)
        columns = {name: _columns(connection, name) for name in names}
        connection.text_factory = bytes
        if not table:
            _digest_rows(connection, "SELECT type, name, tbl_name, sql FROM sqlite_master", digest)
        for name in names:
            digest.update(f"table {name!r}\n".encode())
            _digest_rows(connection, _select_all(name, columns[name]), digest)
    finally:
        connection.text_factory = usual
    return digest.digest()


def sync_folder(folder: Path) -> None:
    """Make a renamed file's new name survive a loss of power, where that can be asked for."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_room(path: Path, needed: int) -> None:
    free = bytes_free(path)
    if free < needed:
        raise CannotOpenError(
            f"cannot take over {path}: the takeover and the copy need up to {_megabytes(needed)} "
            f"of disk, {_megabytes(free)} are free; make room, or move the file"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:,.0f} MB"


def _write(path: Path, partial: Path) -> None:
    # As private as the original from the first byte on.
    mode = path.stat().st_mode & 0o777
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    # Not `open_read_only`: closing its look at the header would drop our locks.
    with (
        contextlib.closing(connect(path, "mode=ro")) as source,
        contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as copy,
    ):
        # Nobody reads it before it is complete and synced, all of it at once.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(copy, pages=_PAGES_AT_ONCE)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())


def _require_copy(path: Path, wanted: bytes) -> None:
    if not _is_copy(path, wanted):
        raise CannotOpenError(
            f"what was written to {path} reads back otherwise; the disk cannot be trusted"
        )


def _is_copy(path: Path, wanted: bytes) -> bool:
    """Tell whether the file at ``path`` is sound and holds what ``wanted`` tells of."""
    try:
        with open_read_only(path) as connection:
            return damage(connection, full=True) is None and fingerprint(connection) == wanted
    except sqlite3.Error:
        return False


def _ordinary_tables(connection: sqlite3.Connection) -> list[str]:
    listed = connection.execute("PRAGMA main.table_list").fetchall()
    return sorted(row[1] for row in listed if row[2] == "table" and row[1] != "sqlite_schema")


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA main.table_xinfo({quoted(table)})")]


def _select_all(table: str, columns: list[str]) -> str:
    classes = ", ".join(f"typeof({quoted(column)}), {quoted(column)}" for column in columns)
    # The table's own order, whatever indexes there are.
    return f"SELECT {classes} FROM main.{quoted(table)} NOT INDEXED"  # noqa: S608 - quoted


def _digest_rows(connection: sqlite3.Connection, sql: str, digest: blake2b) -> None:
    for row in connection.execute(sql):
        # repr of NULL, numbers and bytes has one spelling for each value.
        digest.update(repr(row).encode() + b"\n")
