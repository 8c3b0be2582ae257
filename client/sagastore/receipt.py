"""Reading, writing and verification of the receipt of an archived SQLite store.

After the migration to PostgreSQL, the server makes the SQLite file a read-only archive
and writes a receipt of its content beside it. `check` verifies later, on any machine,
that neither has changed.

A receipt is a JSON object:

- ``format`` and ``version``;
- ``archived_at``, in UTC;
- ``file``, the original name of the file, and ``archive``, its name as an archive;
- ``bytes`` and ``sha256`` of the archive;
- ``facts``, the content of the archive, see `facts`;
- ``report``, the state of PostgreSQL and of the last comparisons;
- ``made_by``, the version of the server;
- ``receipt_sha256``, the digest of all other values.

This module needs only the standard library and never writes files beside an archive,
except the receipt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sagastore.legacy import Text, raw_row_as_json
from sagastore.legacy.database import VALUE_COMPLAINTS

__all__ = [
    "Check",
    "CheckResult",
    "Receipt",
    "ReceiptError",
    "check",
    "facts",
    "read_receipt",
    "receipt_path",
    "sha256_of",
    "write_receipt",
]

SUFFIX = ".receipt.json"
"""The receipt of ``messages.db`` is ``messages.db.receipt.json``."""

Progress = Callable[[str, int, int], None]
"""Called with the current step, the amount done, and the total (0 if unknown)."""

_FORMAT = "sagastore-receipt"
_VERSION = 1
_ARCHIVE = re.compile(r"\.archive(-\d+)?$")
_CHUNK = 1 << 20
_REPORT_EVERY = 1000
_MESSAGE = (
    "id", "provider", "role", "content", "tags", "timestamp", "metadata", "session_id",
    "created_at", "revision",
)  # fmt: skip
_TABLES = {
    "messages": ("messages", _MESSAGE, "ORDER BY id"),
    "quarantine": (
        "quarantine", ("number", "source_key", "reason", "field", "row"), "ORDER BY number"
    ),
    "files": ("files", (), "NOT INDEXED"),
    "extras": ("legacy_extra", ("message_id", "name", "value"), "ORDER BY message_id, name"),
    "tombstones": ("tombstones", ("id", "revision", "deleted_at"), "ORDER BY id"),
    "sessions": (
        "sessions",
        ("session_id", "title", "metadata", "explicit", "message_count", "providers", "first_time",
         "first_sequence", "first_message", "last_time", "last_sequence", "created_at",
         "updated_at", "revision", "deleting"),
        "ORDER BY session_id",
    ),
    "file_tombstones": ("file_tombstones", ("id", "revision", "deleted_at"), "ORDER BY id"),
}  # fmt: skip
"""Table, columns and order of each kind of row. For files, the columns are those of the
table, in the order of the table. Archives of earlier versions lack the last two."""


class ReceiptError(Exception):
    """The receipt is missing or invalid; the text is the reason, in one line."""


class Receipt(NamedTuple):
    """The values of a receipt."""

    archived_at: str
    """Time of the archiving: ISO form, UTC."""
    file: str
    """Original name of the file."""
    archive: str
    """Name of the archive, in the folder of the receipt."""
    bytes: int
    sha256: str
    facts: dict[str, Any]
    report: dict[str, Any]
    made_by: str
    intact: bool = True
    """False if the receipt has changed since it was written."""


class Check(NamedTuple):
    """The result of one check."""

    name: str
    ok: bool
    detail: str
    """The finding, in one line."""


class CheckResult(NamedTuple):
    """The result of the verification of an archive against its receipt."""

    archive: Path
    receipt: Path
    said: Receipt
    """The values of the receipt."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True if all checks passed."""
        return all(one.ok for one in self.checks)


# ------------------------------------------------------------------ content of a file


def facts(connection: sqlite3.Connection, progress: Progress | None = None) -> dict[str, Any]:
    """Return the facts of a SagaStore file, for a receipt.

    - ``integrity_check`` is ``ok`` or the first damage.
    - Each kind of row has ``rows``, the number of rows, and ``sha256``, the digest of all
      rows: each row as `sagastore.legacy.raw_row_as_json`, followed by a line feed.
    - Messages, extra values, sessions and tombstones are ordered by the bytes of their
      ids, the quarantine by number, files by their order in the table. A kind that an
      earlier version did not store is missing.
    - The columns of a message are id, provider, role, content, tags, timestamp,
      metadata, session_id, created_at and revision.

    Memory use does not depend on the size of the file.

    Raises:
        sqlite3.Error: The file cannot be read.

    """
    notify = progress or _ignore_progress
    usual = connection.text_factory
    connection.text_factory = Text
    try:
        state = dict(connection.execute("SELECT name, value FROM store_state"))
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return {
            "store_id": _text(state.get(Text(b"store_id"))),
            "schema_version": version,
            "revision": state.get(Text(b"revision")),
            "integrity_check": _integrity(connection, notify),
            **{
                kind: _table_facts(connection, kind, notify)
                for kind in _TABLES
                if _has_table(connection, _TABLES[kind][0])
            },
        }
    finally:
        connection.text_factory = usual


def _integrity(connection: sqlite3.Connection, notify: Progress) -> str:
    notify("checking every page", 0, 0)
    # Without a limit: by default, a hundred unusual values would hide a damaged page.
    for (line,) in connection.execute("PRAGMA integrity_check(2147483647)"):
        text = _text(line)
        if text != "ok" and not text.startswith(VALUE_COMPLAINTS):
            return " ".join(text.split())
    return "ok"


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(found, (name,)).fetchone() is not None


def _table_facts(connection: sqlite3.Connection, kind: str, notify: Progress) -> dict[str, Any]:
    table, columns, order = _TABLES[kind]
    if not columns:
        listed = connection.execute(f"PRAGMA main.table_xinfo({table})")
        columns = tuple(_text(row[1]) for row in listed)
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    digest, rows = hashlib.sha256(), 0
    for row in connection.execute(f"SELECT {names} FROM main.{table} {order}"):  # noqa: S608 - quoted
        digest.update(raw_row_as_json(columns, row).encode() + b"\n")
        if rows % _REPORT_EVERY == 0:
            notify(f"reading {kind}", rows, 0)
        rows += 1
    return {"rows": rows, "sha256": digest.hexdigest()}


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: The file cannot be read.

    """
    notify = progress or _ignore_progress
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            notify("reading the file", done, total)
    return digest.hexdigest()


# ------------------------------------------------------------------ receipts


def receipt_path(file: Path) -> Path:
    """Return the path of the receipt of ``file``."""
    return file.with_name(file.name + SUFFIX)


def write_receipt(path: Path, receipt: Receipt, *, mode: int = 0o600) -> None:
    """Write a receipt atomically and durably.

    Args:
        path: The file.
        receipt: Its values.
        mode: Its permissions.

    Raises:
        OSError: The receipt cannot be written.

    """
    document = {"format": _FORMAT, "version": _VERSION, **receipt._asdict()}
    del document["intact"]
    document["receipt_sha256"] = _digest_of(document)
    partial = path.with_name(path.name + ".partial")
    try:
        with os.fdopen(_created(partial, mode), "w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(path.parent)


def _created(path: Path, mode: int) -> int:
    """Open a new file, never through a link; one that a killed process has left is removed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        path.unlink()
        return os.open(path, flags, mode)


def read_receipt(path: Path) -> Receipt:
    """Return the values of a receipt.

    Raises:
        ReceiptError: The file is missing, unreadable or not a receipt.

    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ReceiptError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ReceiptError(f"{path} is not a receipt: it is not JSON") from exc
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ReceiptError(f"{path} is not a receipt of SagaStore")
    if found.get("version") != _VERSION:
        raise ReceiptError(
            f"{path} has version {found.get('version')!r}, but this program supports only "
            f"version {_VERSION}; use a newer sagastore"
        )
    return _receipt_of(path, found)


def _receipt_of(path: Path, found: dict[str, Any]) -> Receipt:
    kinds = {"bytes": int, "facts": dict, "report": dict}
    values = {name: found.get(name) for name in Receipt._fields if name != "intact"}
    for name, value in values.items():
        if not isinstance(value, kinds.get(name, str)):
            raise ReceiptError(
                f"{path} is not a receipt of SagaStore: {name} is missing or has the wrong type"
            )
    if Path(str(values["archive"])).name != values["archive"]:
        raise ReceiptError(f"{path} names an archive in another folder; put both into one folder")
    said = found.pop("receipt_sha256", None)
    return Receipt(**values, intact=said == _digest_of(found))  # type: ignore[arg-type]  # checked above


def _digest_of(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------ verification


def check(path: Path, progress: Progress | None = None) -> CheckResult:
    """Verify an archive against its receipt in the same folder; ``path`` is either of them.

    The size, SHA-256, integrity and facts of the archive are computed again.

    Raises:
        ReceiptError: ``path`` or the receipt is missing, unreadable or not a receipt.

    """
    receipt = _receipt_for(path)
    said = read_receipt(receipt)
    archive = receipt.with_name(said.archive)
    return CheckResult(
        archive, receipt, said, tuple(_checks(archive, receipt, said, progress or _ignore_progress))
    )


def _receipt_for(path: Path) -> Path:
    """Return ``path`` if it is a receipt, else the receipt of the archive ``path``."""
    if path.name.endswith(SUFFIX):
        return path
    usual = receipt_path(path.with_name(_ARCHIVE.sub("", path.name)))
    for beside in (receipt_path(path), usual):
        if beside.is_file():
            with contextlib.suppress(ReceiptError):
                if read_receipt(beside).archive != path.name:
                    continue
            return beside
    if path.is_file() and not _is_database(path):
        return path  # A renamed receipt; anything else is reported when it is read.
    if not path.exists():
        raise ReceiptError(f"{path} does not exist")
    raise ReceiptError(f"{path} has no receipt in its folder (expected {usual.name})")


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\x00"
    except OSError as exc:
        raise ReceiptError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _checks(archive: Path, receipt: Path, said: Receipt, notify: Progress) -> Iterator[Check]:
    yield Check(
        "receipt", said.intact, "unchanged" if said.intact else "changed since it was written"
    )
    if not archive.is_file():
        detail = f"{said.archive} does not exist"
        if receipt.with_name(said.file).is_file():
            detail += (
                f", but {said.file} does: archiving was interrupted; start the server once "
                "with --sqlite and --postgres"
            )
        yield Check("archive", False, detail)
        return
    yield Check("archive", True, f"{said.archive} exists")
    yield _log_check(archive)
    yield from _file_checks(archive, said, notify)
    yield from _fact_checks(archive, said, notify)


def _log_check(archive: Path) -> Check:
    """Check for logs, which a program leaves after it has written to the archive."""
    logs = [archive.with_name(archive.name + suffix) for suffix in ("-wal", "-journal")]
    found = [log.name for log in logs if log.exists()]
    if found:
        return Check("log", False, f"{', '.join(found)} exists: the archive was opened for writing")
    return Check("log", True, "no log of unfinished writes")


def _file_checks(archive: Path, said: Receipt, notify: Progress) -> Iterator[Check]:
    try:
        size, digest = archive.stat().st_size, sha256_of(archive, notify)
    except OSError as exc:
        yield Check("sha256", False, f"cannot be read: {exc.strerror or exc}")
        return
    yield _equal("bytes", said.bytes, size)
    yield _equal("sha256", said.sha256, digest)


def _fact_checks(archive: Path, said: Receipt, notify: Progress) -> Iterator[Check]:
    try:
        with _opened(archive) as connection:
            found = facts(connection, notify)
    except (sqlite3.Error, ValueError) as exc:
        yield Check("integrity_check", False, f"cannot be read: {' '.join(str(exc).split())}")
        return
    yield Check(
        "integrity_check", found["integrity_check"] == "ok", f"{found.pop('integrity_check')}"
    )
    for name, value in found.items():
        if isinstance(value, dict):
            yield _same_rows(name, said.facts.get(name), value)
        else:
            yield _equal(name, said.facts.get(name), value)


def _same_rows(name: str, said: object, found: dict[str, Any]) -> Check:
    rows = f"{found['rows']:,} rows"
    if said == found:
        return Check(name, True, rows)
    if isinstance(said, dict) and said.get("rows") == found["rows"]:
        return Check(name, False, f"{rows}, the number in the receipt, but with other content")
    count = said.get("rows") if isinstance(said, dict) else None
    return Check(name, False, f"{rows}, but the receipt says {count}")


def _equal(name: str, said: object, found: object) -> Check:
    if said == found and type(said) is type(found):
        return Check(name, True, f"{found}")
    return Check(name, False, f"{found}, but the receipt says {said}")


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[sqlite3.Connection]:
    # Immutable: no locks, no files beside the archive, and a log is ignored.
    uri = f"{archive.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = ON")
        yield connection


# ------------------------------------------------------------------ helpers


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _ignore_progress(what: str, done: int, total: int) -> None:
    """Do nothing; the default callback."""
