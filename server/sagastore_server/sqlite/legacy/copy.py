"""Verified copy of a legacy file, made before the import changes the file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from hashlib import blake2b
from pathlib import Path

from sagastore.legacy.database import stored_columns
from sagastore_server.runtime.private_files import create
from sagastore_server.sqlite.files import connect, damage, open_read_only, quoted, scalar
from sagastore_server.storage.errors import CannotOpenError

SUFFIX = ".before-sagastore"
"""The copy of ``memory.db`` is ``memory.db.before-sagastore``, in the same folder."""

_PARTIAL = ".partial"
_PAGES_AT_ONCE = 4096

_GROWTH = 2
"""Disk space required for the import besides the copy, in multiples of the file size.

The new tables and their index coexist with the old ones until the end (1.0 times the file with
200,000 dialogue messages), and the rollback journal keeps the changed pages (0.2).
"""

_SPARE_BYTES = 16 * 1024 * 1024


def bytes_needed(connection: sqlite3.Connection, *, with_copy: bool = True) -> int:
    """Return the free bytes that an import requires; it rarely uses them all."""
    pages = scalar(connection, "PRAGMA page_count")
    size = pages * scalar(connection, "PRAGMA page_size")
    return size * (_GROWTH + with_copy) + _SPARE_BYTES


def bytes_free(path: Path) -> int:
    """Return the free bytes of the disk that holds the file."""
    return shutil.disk_usage(path.parent).free


def verified_copy(path: Path, original: sqlite3.Connection) -> Path:
    """Return a copy in the folder of ``path``, read back and compared with the original.

    An existing copy of an earlier attempt is reused if it is equal. A different one is kept, and
    the name of the new copy gets a number.

    Args:
        path: The legacy file, without symbolic links.
        original: A connection to it that holds the write lock.

    Raises:
        CannotOpenError: The disk has too little space, or the copy differs when read back.
        sqlite3.Error: The file cannot be read, or the copy cannot be written.
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


def fingerprint(connection: sqlite3.Connection) -> bytes:
    """Return a digest of the schema, and of every value and its storage class.

    It covers all ordinary tables, and not the contents of virtual tables.
    """
    usual = connection.text_factory
    digest = blake2b(digest_size=32)
    try:
        connection.text_factory = str
        names = _ordinary_tables(connection)
        # A generated column that is not stored has no data, and may fail to compute.
        columns = {name: stored_columns(connection, name) for name in names}
        connection.text_factory = bytes
        _digest_rows(connection, "SELECT type, name, tbl_name, sql FROM sqlite_master", digest)
        for name in names:
            digest.update(f"table {name!r}\n".encode())
            _digest_rows(connection, _select_all(name, columns[name]), digest)
    finally:
        connection.text_factory = usual
    return digest.digest()


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power loss, if the system supports that."""
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
            f"cannot import {path}: the import and the copy need up to {_megabytes(needed)} "
            f"of disk space, {_megabytes(free)} are free; free space or move the file"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:,.0f} MB"


def _write(path: Path, partial: Path) -> None:
    # Without access for other users from the first byte on.
    os.close(create(partial, path.stat()))
    # Not `open_read_only`: it opens the file to read the header, and closing it drops our locks.
    with (
        contextlib.closing(connect(path, "mode=ro")) as source,
        contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as copy,
    ):
        # No durability needed: the copy is synced once, and is not used before.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(copy, pages=_PAGES_AT_ONCE)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())


def _require_copy(path: Path, wanted: bytes) -> None:
    if not _is_copy(path, wanted):
        raise CannotOpenError(
            f"the copy {path} differs from the original when read back; check the disk"
        )


def _is_copy(path: Path, wanted: bytes) -> bool:
    """Return whether the file at ``path`` is undamaged and has the fingerprint ``wanted``."""
    try:
        with open_read_only(path) as connection:
            return damage(connection, full=True) is None and fingerprint(connection) == wanted
    except sqlite3.Error:
        return False


def _ordinary_tables(connection: sqlite3.Connection) -> list[str]:
    listed = connection.execute("PRAGMA main.table_list").fetchall()
    return sorted(row[1] for row in listed if row[2] == "table" and row[1] != "sqlite_schema")


def _select_all(table: str, columns: list[str]) -> str:
    classes = ", ".join(f"typeof({column}), {column}" for column in columns) or "1"
    # NOT INDEXED: the order of the table, which does not depend on indexes.
    return f"SELECT {classes} FROM main.{quoted(table)} NOT INDEXED"  # noqa: S608 - quoted


def _digest_rows(connection: sqlite3.Connection, sql: str, digest: blake2b) -> None:
    for row in connection.execute(sql):
        # repr is unique for each value of NULL, numbers and bytes.
        digest.update(repr(row).encode() + b"\n")
