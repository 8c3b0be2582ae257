"""Refuses a file that is under migration, or whose messages have moved for good.

A server that was started with yesterday's configuration would write behind the back of
the migration, or begin an empty store where the old one was.
"""

from __future__ import annotations

import sqlite3
import stat
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sagastore.receipt import Receipt, ReceiptError, read_receipt, receipt_path
from sagastore_server.sqlite.files import APPLICATION_ID, MAGIC, open_read_only, scalar
from sagastore_server.sqlite.migration_state import ArchiveMark, load_moved, load_state, read_value
from sagastore_server.storage.errors import CannotOpenError, CorruptStoreError, MovedError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState


class StoreRecord(NamedTuple):
    """What a file of ours remembers of a migration."""

    state: MigrationState
    moved: ArchiveMark | None
    store_id: str


def remembered(path: Path, *, recover: bool) -> StoreRecord | None:
    """Return what the file remembers; None if it is not ours, or cannot be read.

    What is wrong with such a file is told by opening it. ``recover`` is for the one who
    owns it; see ``files.open_read_only``.

    Raises:
        CannotOpenError: It is ours, and what it says of a migration cannot be read.

    """
    try:
        if not _begins_like_a_database(path):
            return None
        with open_read_only(path, recover=recover) as connection:
            return remembered_by(connection)
    except CorruptStoreError as exc:
        raise CannotOpenError(f"cannot use {path}: {exc}") from exc
    except (sqlite3.Error, OSError):
        return None


def remembered_by(connection: sqlite3.Connection) -> StoreRecord | None:
    """Return what an open database remembers; None if it is not ours.

    Raises:
        CorruptStoreError: What it says of a migration cannot be read.
        sqlite3.Error: It cannot be read.

    """
    if scalar(connection, "PRAGMA application_id") != APPLICATION_ID:
        return None
    store_id = str(read_value(connection, "store_id"))
    return StoreRecord(load_state(connection), load_moved(connection), store_id)


def refuse_by_name(path: Path) -> None:
    """Refuse what can be told to have moved without owning it.

    That is a missing file with a receipt in its place, and an archive: a file that
    nobody may write to, so that no server has it open.

    Raises:
        MovedError: The messages are in PostgreSQL.

    """
    real = path.resolve()
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        _refuse_receipt(path, receipt_path(real))
        return
    except OSError:
        return  # Opening it says why.
    if stat.S_ISREG(mode) and not mode & 0o222:
        found = remembered(path, recover=False)
        if found is not None and is_archive(real, found):
            raise moved(path, found)


def is_archive(real: Path, found: StoreRecord) -> bool:
    """Tell an archive from a file that is yet to be made one: it has another name now."""
    return found.moved is not None and found.moved.file != real.name


def refuse_if_migrating(path: Path, found: StoreRecord) -> None:
    """Refuse to use a file without the PostgreSQL that its migration goes to.

    Raises:
        MovedError: The messages are in PostgreSQL.
        CannotOpenError: The phase is another than SQLITE_ONLY.

    """
    if found.state.phase is Phase.POSTGRES_ONLY:
        raise moved(path, found)
    if (reason := why_not_alone(found)) is not None:
        raise CannotOpenError(f"{path} {reason}")


def why_not_alone(found: StoreRecord) -> str | None:
    """Say why the file cannot be served without PostgreSQL, to follow its name; None: it can."""
    phase = found.state.phase
    if phase is Phase.SQLITE_ONLY:
        return None
    if phase is Phase.POSTGRES_ONLY:
        since = "" if found.moved is None else f" since {_readable(found.moved.at)}"
        return f"was archived: the messages live in PostgreSQL{since}; start with --postgres alone"
    return (
        f"is in phase {phase.slug} of a migration to PostgreSQL; start with --postgres as well, "
        "or go back to sqlite-only first"
    )


def moved(path: Path, found: StoreRecord) -> MovedError:
    """Return the refusal of a file whose messages have moved."""
    return MovedError(f"{path} {why_not_alone(found)}", found.store_id)


def _refuse_receipt(path: Path, receipt: Path) -> None:
    if not receipt.exists():
        return
    begin_anew = f"or move {receipt.name} away to begin an empty store at this path"
    try:
        said = read_receipt(receipt)
    except ReceiptError as exc:
        raise MovedError(
            f"{path} is not there, but a receipt of its archiving is, and {exc}; "
            f"start with --postgres alone, {begin_anew}"
        ) from exc
    raise MovedError(
        f"{path} is not there: its messages moved to PostgreSQL at "
        f"{_readable(said.archived_at)}, and the file is now {said.archive}; "
        f"start with --postgres alone, {begin_anew}",
        _store_id(receipt, said),
    )


def _store_id(receipt: Path, said: Receipt) -> str:
    """Return which store a receipt is of; empty if neither it nor its archive tells."""
    archive = remembered(receipt.with_name(said.archive), recover=False)
    return str(said.report.get("store_id", "")) if archive is None else archive.store_id


def _begins_like_a_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _readable(at: str) -> str:
    try:
        return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return at
