"""A receipt proves that an archive is what it was, and finds every change."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sagastore import receipt
from sagastore.receipt import CheckResult, ReceiptError, check
from sagastore_server.sqlite.source import SQLiteSource
from tests.support.drafts import draft
from tests.support.legacy_db import MESSAGES, PLAIN, contents_of, legacy_db

ARCHIVE, RECEIPT = "memory.db.archive", "memory.db.receipt.json"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archive a file that has something of everything."""
    path = tmp_path_factory.mktemp("template") / "memory.db"
    rows = [PLAIN | {"id": f"m{n}", "mood": b"\xff", "content": "grüße " * 900} for n in range(30)]
    messages = MESSAGES.replace("created_at DATETIME", "mood, created_at DATETIME")
    odd = "UPDATE files SET filename = CAST(x'ff' AS TEXT) WHERE id = 'f1';"
    legacy_db(path, [*rows, PLAIN | {"id": None, "mood": 1.5}], messages=messages, more=odd)
    asyncio.run(_archive(path))
    path.with_name("memory.db.before-sagastore").unlink()
    path.with_name("memory.db.lock").unlink(missing_ok=True)
    return path.parent


async def _archive(path: Path) -> None:
    source = SQLiteSource(path)
    await source.open()
    await source.save(draft("late"))
    await source.delete("m7")
    await source.archive({"postgresql": {"messages": 30}})
    await source.close()


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """Copy the archive and its receipt to where a test may change them."""
    copy = tmp_path / "archive"
    shutil.copytree(template, copy)
    return copy


def _failed(result: CheckResult) -> set[str]:
    assert not result.ok
    assert all("\n" not in one.detail for one in result.checks)
    return {one.name for one in result.checks if not one.ok}


def _rewrite(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def _sign(document: dict[str, object]) -> None:
    """Forge a receipt with knowledge of its format."""
    document.pop("receipt_sha256")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["receipt_sha256"] = hashlib.sha256(text.encode()).hexdigest()


def _changed(path: Path, *statements: str) -> None:
    """Write to the archive, past its guards."""
    path.chmod(0o644)
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        plain.create_function("sagastore_server_owns_this_file", 0, lambda: 1)
        for statement in statements:
            plain.execute(statement)


@pytest.mark.parametrize("name", [ARCHIVE, RECEIPT])
def test_an_archive_that_is_as_it_was(folder: Path, name: str) -> None:
    before = contents_of(folder)
    result = check(folder / name)
    assert result.ok, result.checks
    assert (result.archive, result.receipt) == (folder / ARCHIVE, folder / RECEIPT)
    assert [one.name for one in result.checks] == [
        "receipt", "archive", "log", "bytes", "sha256", "integrity_check", "store_id",
        "schema_version", "revision", "messages", "quarantine", "files", "extras", "tombstones",
        "sessions", "file_tombstones",
    ]  # fmt: skip
    rows = {
        name: found["rows"] for name, found in result.said.facts.items() if "rows" in str(found)
    }
    assert rows == {
        "messages": 30,
        "quarantine": 2,
        "files": 2,
        "extras": 30,
        "tombstones": 1,
        "sessions": 2,
        "file_tombstones": 0,
    }
    assert result.said.report == {"postgresql": {"messages": 30}}
    assert contents_of(folder) == before


def test_it_may_be_kept_elsewhere_under_other_rights(folder: Path) -> None:
    (folder / ARCHIVE).chmod(0o600)
    folder = folder.rename(folder.with_name("elsewhere #1? & so"))
    assert check(folder / ARCHIVE).ok
    (folder / RECEIPT).rename(folder / "receipt")
    assert check(folder / "receipt").ok


def test_a_digest_can_be_made_by_anybody(folder: Path) -> None:
    """As the documentation says: JSON of each row, in order, a line feed after each."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(folder / ARCHIVE)) as plain:
        plain.row_factory = sqlite3.Row
        for row in plain.execute("SELECT * FROM messages ORDER BY id"):
            values = {name: row[name] for name in row.keys() if name != "number"}  # noqa: SIM118
            digest.update(json.dumps(values, ensure_ascii=False).encode() + b"\n")
    assert check(folder / RECEIPT).said.facts["messages"]["sha256"] == digest.hexdigest()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.9999])
def test_a_byte_that_changed(folder: Path, share: float) -> None:
    path = folder / ARCHIVE
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(content)
    for name in (ARCHIVE, RECEIPT):
        result = check(folder / name)
        assert "sha256" in _failed(result)
        assert "receipt" not in _failed(result)


def test_a_file_that_was_cut(folder: Path) -> None:
    path = folder / ARCHIVE
    path.chmod(0o644)
    for length in (path.stat().st_size // 2, 100, 0):
        path.write_bytes(path.read_bytes()[:length])
        assert {"bytes", "sha256", "integrity_check"} <= _failed(check(path))


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE messages SET content = upper(content) WHERE id = 'm3'", "messages"),
        ("UPDATE messages SET revision = 999 WHERE id = 'm3'", "messages"),
        ("UPDATE messages SET session_id = NULL WHERE id = 'm3'", "messages"),
        ("DELETE FROM messages WHERE id = 'm3'", "messages"),
        ("UPDATE quarantine SET reason = 'none'", "quarantine"),
        ("DELETE FROM files WHERE id = 'f2'", "files"),
        ("UPDATE files SET extra = '{}' || extra WHERE id = 'f2'", "files"),
        ("UPDATE legacy_extra SET value = CAST(value AS TEXT) WHERE message_id = 'm1'", "extras"),
        ("DELETE FROM tombstones", "tombstones"),
        ("UPDATE sessions SET title = title || ' 2'", "sessions"),
        ("INSERT INTO file_tombstones VALUES ('f9', 1, 1)", "file_tombstones"),
        ("UPDATE store_state SET value = 'other' WHERE name = 'store_id'", "store_id"),
        ("UPDATE store_state SET value = 1 WHERE name = 'revision'", "revision"),
    ],
)
def test_a_row_that_changed(folder: Path, statement: str, what: str) -> None:
    """Each is named, and nothing else, even if the receipt's digest of the file is forged."""
    path = folder / ARCHIVE
    _changed(path, statement)
    assert {"sha256", what} <= _failed(check(path)) <= {"sha256", "bytes", what}

    def forge(document: dict[str, object]) -> None:
        document["bytes"] = path.stat().st_size
        document["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        _sign(document)

    _rewrite(folder / RECEIPT, forge)
    assert _failed(check(path)) == {what}


def test_an_index_that_does_not_fit_its_table(folder: Path) -> None:
    path = folder / ARCHIVE
    _changed(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, '(timestamp)', '(revision)')"
        " WHERE name = 'idx_messages_timestamp'",
    )
    result = check(path)
    assert {"sha256", "integrity_check"} <= _failed(result)
    assert "messages" not in _failed(result)


def _first_fact(document: dict[str, object]) -> None:
    facts = document["facts"]
    assert isinstance(facts, dict)
    facts["messages"]["rows"] += 1


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (_first_fact, {"receipt", "messages"}),
        (lambda document: document.update(report={"postgresql": {"messages": 31}}), {"receipt"}),
        (lambda document: document.update(archived_at="2020-01-01T00:00:00+00:00"), {"receipt"}),
        (lambda document: document.update(sha256="0" * 64), {"receipt", "sha256"}),
        (lambda document: document.update(bytes=True), {"receipt", "bytes"}),
        (lambda document: document.update(more="of it"), {"receipt"}),
        (lambda document: document.pop("receipt_sha256"), {"receipt"}),
        (lambda document: document["facts"].clear(), None),
    ],
)
def test_a_receipt_that_was_edited(
    folder: Path, change: Callable[[dict[str, object]], object], failed: set[str] | None
) -> None:
    _rewrite(folder / RECEIPT, change)
    found = _failed(check(folder / ARCHIVE))
    assert found == failed if failed else {"receipt", "messages", "files"} < found


def test_a_receipt_that_was_only_formatted_anew(folder: Path) -> None:
    _rewrite(folder / RECEIPT, lambda document: document.update(dict(reversed(document.items()))))
    assert check(folder / RECEIPT).ok


def test_what_was_written_beside_it_does_not_hide(folder: Path) -> None:
    """A change that is only in a log is not in the file yet, whose digest is right."""
    path = folder / ARCHIVE
    path.chmod(0o644)
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        plain.execute("PRAGMA journal_mode = WAL")
        shutil.copyfile(path, folder / "in-wal-mode")
        plain.execute("UPDATE quarantine SET reason = 'none'")
        assert "log" in _failed(check(path))


def test_an_archive_that_is_gone(folder: Path) -> None:
    (folder / ARCHIVE).rename(folder / "elsewhere")
    result = check(folder / RECEIPT)
    assert _failed(result) == {"archive"}
    assert result.checks[-1].detail == "memory.db.archive does not exist"
    (folder / "elsewhere").rename(folder / "memory.db")
    detail = check(folder / RECEIPT).checks[-1].detail
    assert "memory.db does: archiving was interrupted; start the server" in detail


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not a receipt: it is not JSON"),
        (b"\xff\xfe", "is not a receipt: it is not JSON"),
        (b"[" * 100_000, "is not a receipt: it is not JSON"),
        (b"[]", "is not a receipt of SagaStore"),
        (b'{"format": "other"}', "is not a receipt of SagaStore"),
        (
            b'{"format": "sagastore-receipt", "version": 2}',
            "supports only version 1; use a newer sagastore",
        ),
        (
            b'{"format": "sagastore-receipt", "version": 1}',
            "archived_at is missing or has the wrong type",
        ),
    ],
)
def test_what_is_no_receipt(folder: Path, content: bytes, why: str) -> None:
    (folder / RECEIPT).write_bytes(content)
    for name in (RECEIPT, ARCHIVE):
        with pytest.raises(ReceiptError, match=why) as caught:
            check(folder / name)
        assert "\n" not in str(caught.value)


def test_a_receipt_that_names_a_file_elsewhere(folder: Path) -> None:
    _rewrite(folder / RECEIPT, lambda document: document.update(archive="../other"))
    with pytest.raises(ReceiptError, match="in another folder"):
        check(folder / RECEIPT)


def test_what_is_missing(folder: Path) -> None:
    with pytest.raises(ReceiptError, match="does not exist"):
        check(folder / "no.db.archive")
    with pytest.raises(ReceiptError, match="cannot be read: No such file"):
        check(folder / "no.receipt.json")
    with pytest.raises(ReceiptError):
        check(folder)
    (folder / RECEIPT).unlink()
    with pytest.raises(ReceiptError, match=r"no receipt in its folder \(expected memory\.db\.rec"):
        check(folder / ARCHIVE)


def test_a_receipt_is_written_wholly_or_not_at_all(folder: Path) -> None:
    said = receipt.read_receipt(folder / RECEIPT)
    before = contents_of(folder)
    with pytest.raises(TypeError):
        receipt.write_receipt(folder / RECEIPT, said._replace(report={"no": object()}))
    assert contents_of(folder) == before
    receipt.write_receipt(folder / RECEIPT, said)
    assert contents_of(folder) == before


def test_reading_takes_no_memory_and_tells_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    rows = ({**PLAIN, "id": f"m{n}", "content": "x" * 4000} for n in range(5000))
    legacy_db(path, rows, with_indexes=False)
    asyncio.run(_archive(path))
    heard: list[tuple[str, int, int]] = []
    tracemalloc.start()
    try:
        result = check(tmp_path / "large.db.archive", lambda *progress: heard.append(progress))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.ok
    assert (tmp_path / "large.db.archive").stat().st_size > 20_000_000
    assert peak < 5_000_000
    steps = {what for what, _, _ in heard}
    assert {"reading the file", "checking every page", "reading messages"} <= steps
