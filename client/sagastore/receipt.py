"""The receipt of an archived SQLite store: what it says, and whether it is still true.

When the messages of a store have moved to PostgreSQL, its file becomes a read-only
archive, and a receipt beside it tells what is in it. The server writes both; `check`
proves later, on any machine, that neither has changed since.

A receipt is JSON: ``format`` and ``version``; ``archived_at`` (UTC); ``file``, the name
of the file when it was in use; ``archive``, its name now; ``bytes`` and ``sha256`` of the
archive; ``facts``, what `facts` found in it; ``report``, what the server knew of
PostgreSQL and of the last comparisons; ``made_by``; and ``receipt_sha256``, over all that.

This module needs the standard library only. Nothing is ever written beside an archive.
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

VALUE_COMPLAINTS = (
    # Full-text indexes that do not fit their table: a legacy file's have drifted.
    # SQLite 3.44 and later look at them.
    "malformed inverted index",
    "unable to validate the inverted index",
    # What a row holds, not how the file holds it.
    "NULL value in ",
    "NUMERIC value in ",
    "TEXT value in ",
    "non-TEXT value in ",
    "non-NUMERIC value in ",
    "CHECK constraint failed in ",
)
"""How lines of ``integrity_check`` begin that tell of odd values, which a legacy table may
hold, and not of damage."""

Progress = Callable[[str, int, int], None]
"""Told what is being read, how much is done, and how much there is (0: not known)."""

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
}  # fmt: skip
"""Table, columns and order of each kind; the files have whatever columns they had, in the
table's own order."""


class ReceiptError(Exception):
    """There is no receipt to check, or no archive that belongs to it; the line says why."""


class Receipt(NamedTuple):
    """What a receipt says."""

    archived_at: str
    """When the messages had moved: ISO form, UTC."""
    file: str
    """Name of the file when it was in use."""
    archive: str
    """Name of the archive, which lies beside the receipt."""
    bytes: int
    sha256: str
    facts: dict[str, Any]
    report: dict[str, Any]
    made_by: str
    intact: bool = True
    """Whether the receipt itself is as it was written."""


class Check(NamedTuple):
    """One thing that was checked."""

    name: str
    ok: bool
    detail: str
    """What was found, in one line."""


class CheckResult(NamedTuple):
    """What came of checking an archive against its receipt."""

    archive: Path
    receipt: Path
    said: Receipt
    """What the receipt says."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as the receipt says."""
        return all(one.ok for one in self.checks)


# ------------------------------------------------------------------ what is in a file


def facts(connection: sqlite3.Connection, progress: Progress | None = None) -> dict[str, Any]:
    """Return what a SagaStore file holds, for a receipt.

    ``integrity_check`` is ``ok`` or the first damage. Each kind of row has ``rows`` and
    ``sha256``: over every row as `sagastore.legacy.raw_row_as_json` with a line feed
    behind it. Messages, extra values and tombstones are in the order of the bytes of
    their ids, quarantine by number, files as they lie in their table. The messages'
    columns are id, provider, role, content, tags, timestamp, metadata, session_id,
    created_at and revision. Memory stays flat.

    Raises:
        sqlite3.Error: It cannot be read.

    """
    tell = progress or _unheard
    usual = connection.text_factory
    connection.text_factory = Text
    try:
        state = dict(connection.execute("SELECT name, value FROM store_state"))
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return {
            "store_id": _text(state.get(Text(b"store_id"))),
            "schema_version": version,
            "revision": state.get(Text(b"revision")),
            "integrity_check": _integrity(connection, tell),
            **{kind: _table_facts(connection, kind, tell) for kind in _TABLES},
        }
    finally:
        connection.text_factory = usual


def _integrity(connection: sqlite3.Connection, tell: Progress) -> str:
    tell("checking every page", 0, 0)
    # Without a limit: a hundred odd values must not hide a damaged page.
    for (line,) in connection.execute("PRAGMA integrity_check(2147483647)"):
        text = _text(line)
        if text != "ok" and not text.startswith(VALUE_COMPLAINTS):
            return " ".join(text.split())
    return "ok"


def _table_facts(connection: sqlite3.Connection, kind: str, tell: Progress) -> dict[str, Any]:
    table, columns, order = _TABLES[kind]
    if not columns:
        listed = connection.execute(f"PRAGMA main.table_xinfo({table})")
        columns = tuple(_text(row[1]) for row in listed)
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    digest, rows = hashlib.sha256(), 0
    for row in connection.execute(f"SELECT {names} FROM main.{table} {order}"):  # noqa: S608 - quoted
        digest.update(raw_row_as_json(columns, row).encode() + b"\n")
        if rows % _REPORT_EVERY == 0:
            tell(f"reading {kind}", rows, 0)
        rows += 1
    return {"rows": rows, "sha256": digest.hexdigest()}


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: It cannot be read.

    """
    tell = progress or _unheard
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            tell("reading the file", done, total)
    return digest.hexdigest()


# ------------------------------------------------------------------ the receipt itself


def receipt_path(file: Path) -> Path:
    """Return where the receipt of ``file`` is, or would be."""
    return file.with_name(file.name + SUFFIX)


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write a receipt, so that it is there wholly or not at all, also after a loss of power.

    Raises:
        OSError: It cannot be written.

    """
    document = {"format": _FORMAT, "version": _VERSION, **receipt._asdict()}
    del document["intact"]
    document["receipt_sha256"] = _digest_of(document)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
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


def read_receipt(path: Path) -> Receipt:
    """Return what a receipt says.

    Raises:
        ReceiptError: It is not there, cannot be read, or is no receipt.

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
            f"{path} has version {found.get('version')!r}, and this program knows version "
            f"{_VERSION}; use a newer one"
        )
    return _receipt_of(path, found)


def _receipt_of(path: Path, found: dict[str, Any]) -> Receipt:
    kinds = {"bytes": int, "facts": dict, "report": dict}
    values = {name: found.get(name) for name in Receipt._fields if name != "intact"}
    for name, value in values.items():
        if not isinstance(value, kinds.get(name, str)):
            raise ReceiptError(
                f"{path} is not a receipt of SagaStore: its {name} is missing or odd"
            )
    if Path(str(values["archive"])).name != values["archive"]:
        raise ReceiptError(f"{path} names an archive that is not beside it; put both in one folder")
    said = found.pop("receipt_sha256", None)
    return Receipt(**values, intact=said == _digest_of(found))  # type: ignore[arg-type]  # looked at above


def _digest_of(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------ checking


def check(path: Path, progress: Progress | None = None) -> CheckResult:
    """Check an archive against its receipt; ``path`` may be either, the other is beside it.

    Everything is read anew: the file's size and SHA-256, its integrity, and the facts.

    Raises:
        ReceiptError: ``path`` or its receipt is missing, unreadable, or no receipt.

    """
    receipt = _receipt_for(path)
    said = read_receipt(receipt)
    archive = receipt.with_name(said.archive)
    return CheckResult(
        archive, receipt, said, tuple(_checks(archive, receipt, said, progress or _unheard))
    )


def _receipt_for(path: Path) -> Path:
    """Return the receipt that ``path`` is, or that belongs to it."""
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
        return path  # A receipt under another name, or it will be said that it is none.
    if not path.exists():
        raise ReceiptError(f"{path} does not exist")
    raise ReceiptError(f"{path} has no receipt beside it (looked for {usual.name})")


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\x00"
    except OSError as exc:
        raise ReceiptError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _checks(archive: Path, receipt: Path, said: Receipt, tell: Progress) -> Iterator[Check]:
    yield Check(
        "receipt", said.intact, "as it was written" if said.intact else "changed since it was made"
    )
    if not archive.is_file():
        detail = f"{said.archive} is not there"
        if receipt.with_name(said.file).is_file():
            detail += (
                f", but {said.file} is: the archiving was interrupted; start the server once "
                "with --sqlite and --postgres"
            )
        yield Check("archive", False, detail)
        return
    yield Check("archive", True, f"{said.archive} is there")
    yield _beside(archive)
    yield from _file_checks(archive, said, tell)
    yield from _fact_checks(archive, said, tell)


def _beside(archive: Path) -> Check:
    """Look for what a program leaves that has written to the archive."""
    logs = [archive.with_name(archive.name + suffix) for suffix in ("-wal", "-journal")]
    found = [log.name for log in logs if log.exists()]
    if found:
        return Check("log", False, f"{', '.join(found)} lies beside it: it was opened for writing")
    return Check("log", True, "no unfinished writes beside it")


def _file_checks(archive: Path, said: Receipt, tell: Progress) -> Iterator[Check]:
    try:
        size, digest = archive.stat().st_size, sha256_of(archive, tell)
    except OSError as exc:
        yield Check("sha256", False, f"cannot be read: {exc.strerror or exc}")
        return
    yield _equal("bytes", said.bytes, size)
    yield _equal("sha256", said.sha256, digest)


def _fact_checks(archive: Path, said: Receipt, tell: Progress) -> Iterator[Check]:
    try:
        with _opened(archive) as connection:
            found = facts(connection, tell)
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
        return Check(name, False, f"{rows}, as many as it says, but not the same")
    count = said.get("rows") if isinstance(said, dict) else None
    return Check(name, False, f"{rows}, but the receipt says {count}")


def _equal(name: str, said: object, found: object) -> Check:
    if said == found and type(said) is type(found):
        return Check(name, True, f"{found}")
    return Check(name, False, f"{found}, but the receipt says {said}")


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[sqlite3.Connection]:
    # Immutable: neither locks nor side files, and a log beside it does not count.
    uri = f"{archive.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = ON")
        yield connection


# ------------------------------------------------------------------ small things


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unheard(what: str, done: int, total: int) -> None:
    """Stand in for a listener."""
