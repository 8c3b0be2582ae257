"""Guard that refuses a file under migration or a file whose messages have moved to PostgreSQL.

Without it, a server started with an outdated configuration would write without the knowledge of
the migration, or create an empty store in place of the archived one.
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
    """Migration state stored in a SagaStore file."""

    state: MigrationState
    moved: ArchiveMark | None
    store_id: str


def remembered(path: Path, *, recover: bool) -> StoreRecord | None:
    """Return the migration state of the file; None if it is unreadable or not a SagaStore file.

    Opening such a file reports what is wrong with it. Set ``recover`` only if the caller owns
    the file; see ``files.open_read_only``.

    Raises:
        CannotOpenError: It is a SagaStore file and its migration state is unreadable.

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


def store_id_of(path: Path) -> str:
    """Return the identity of the store in a file that is open; empty: it is unreadable."""
    found = remembered(path, recover=False)
    return "" if found is None else found.store_id


def remembered_by(connection: sqlite3.Connection) -> StoreRecord | None:
    """Return the migration state of an open database; None if it is not a SagaStore file.

    Raises:
        CorruptStoreError: The migration state is unreadable.
        sqlite3.Error: The database is unreadable.

    """
    if scalar(connection, "PRAGMA application_id") != APPLICATION_ID:
        return None
    store_id = str(read_value(connection, "store_id"))
    return StoreRecord(load_state(connection), load_moved(connection), store_id)


def refuse_by_name(path: Path) -> None:
    """Refuse an archived store before the file is locked.

    Two cases need no lock: the file is missing and has a receipt, and an archive, which is
    read-only, so no server has it open.

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
        return  # Opening it reports the error.
    if stat.S_ISREG(mode) and not mode & 0o222:
        found = remembered(path, recover=False)
        if found is not None and is_archive(real, found):
            raise moved(path, found)


def is_archive(real: Path, found: StoreRecord) -> bool:
    """Return whether the file is an archive: it then has another name than the recorded one."""
    return found.moved is not None and found.moved.file != real.name


def refuse_if_migrating(path: Path, found: StoreRecord) -> None:
    """Refuse a file that needs the PostgreSQL database of its migration.

    Raises:
        MovedError: The messages are in PostgreSQL.
        CannotOpenError: The phase is not SQLITE_ONLY.

    """
    if found.state.phase is Phase.POSTGRES_ONLY:
        raise moved(path, found)
    if (reason := requires_postgresql(found)) is not None:
        raise CannotOpenError(f"{path} {reason}")


def requires_postgresql(found: StoreRecord) -> str | None:
    """Return why the file needs PostgreSQL, as a predicate of its name; None if it does not."""
    phase = found.state.phase
    if phase is Phase.SQLITE_ONLY:
        return None
    if phase is Phase.POSTGRES_ONLY:
        since = "" if found.moved is None else f" since {_readable(found.moved.at)}"
        return f"was archived: the messages are in PostgreSQL{since}; start with --postgres alone"
    return (
        f"is in phase {phase.slug} of a migration to PostgreSQL; also set --postgres, or return "
        "to phase sqlite-only first"
    )


def moved(path: Path, found: StoreRecord) -> MovedError:
    """Return the error for a file whose messages have moved."""
    return MovedError(f"{path} {requires_postgresql(found)}", found.store_id)


def _refuse_receipt(path: Path, receipt: Path) -> None:
    if not receipt.exists():
        return
    new_store = f"or move {receipt.name} away to create an empty store at this path"
    try:
        said = read_receipt(receipt)
    except ReceiptError as exc:
        raise MovedError(
            f"{path} does not exist, but the receipt of its archive does, and {exc}; "
            f"start with --postgres alone, {new_store}"
        ) from exc
    raise MovedError(
        f"{path} does not exist: its messages moved to PostgreSQL at "
        f"{_readable(said.archived_at)}, and the file is now {said.archive}; "
        f"start with --postgres alone, {new_store}",
        _store_id(receipt, said),
    )


def _store_id(receipt: Path, said: Receipt) -> str:
    """Return the store id of an archived file; empty if neither archive nor receipt has it."""
    archive = remembered(receipt.with_name(said.archive), recover=False)
    return str(said.report.get("store_id", "")) if archive is None else archive.store_id


def _begins_like_a_database(path: Path) -> bool:
    if not path.is_file():
        return False  # Opening a named pipe would wait for a writer.
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _readable(at: str) -> str:
    try:
        return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return at
