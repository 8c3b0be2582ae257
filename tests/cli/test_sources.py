"""The importers: formats, invalid rows and unsupported files."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import resource
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sagastore.cli.failures import CommandError
from sagastore.importers import Row, open_source
from sagastore.importers.jsonl import MAX_LINE, JsonLines, read_line
from tests.cli.command import SAMPLE, sample
from tests.cli.databases import legacy_database, store_database


def _read(path: Path | str) -> list[Row]:
    source = open_source(str(path))
    try:
        return list(source.rows(None))
    finally:
        source.close()


def _ids(rows: list[Row]) -> list[str]:
    return [row.message.id for row in rows if row.message is not None]


def _problems(line: bytes) -> list[tuple[str, str]]:
    message, problems = read_line(line, 1)
    assert (message is None) == bool(problems)
    return [(problem.field, problem.reason) for problem in problems]


def test_lines_become_messages() -> None:
    rows = _read(SAMPLE)
    assert _ids(rows) == [message["id"] for message in sample()]
    assert rows[3].key == "line 4"
    message = rows[0].message
    assert message is not None
    assert message.metadata == sample()[0]["metadata"]
    assert message.timestamp is not None
    assert message.timestamp.isoformat() == sample()[0]["timestamp"]


@pytest.mark.parametrize("module", [gzip, lzma, bz2])
def test_compressed_files_are_decompressed(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "no-suffix"
    path.write_bytes(module.compress(SAMPLE.read_bytes()))
    assert _ids(_read(path)) == [message["id"] for message in sample()]
    source = open_source(str(path))
    rows = list(source.rows(None))
    assert source.total(None) == path.stat().st_size
    again = open_source(str(path))
    assert next(again.rows(rows[99].after)).message == rows[100].message
    assert rows[-1].progress <= path.stat().st_size
    source.close()
    again.close()


def test_reading_resumes_at_any_position() -> None:
    rows = _read(SAMPLE)
    for index in (0, 1, 200, 398):
        source = open_source(str(SAMPLE))
        rest = list(source.rows(rows[index].after))
        source.close()
        assert rest == rows[index + 1 :]


def test_line_ends_blank_lines_and_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    line = b'{"id":"%d","provider":"p","role":"r","content":"c"}'
    path.write_bytes(b"\xef\xbb\xbf" + line % 1 + b"\r\n\r\n  \n" + line % 2)
    rows = _read(path)
    assert _ids(rows) == ["1", "2"]
    assert [row.key for row in rows] == ["line 1", "line 4"]
    assert rows[-1].after.offset == path.stat().st_size


def test_u2028_does_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"id":"1","provider":"p","role":"r","content":"a\u2028b\x85c"}\n', encoding="utf-8"
    )
    (row,) = _read(path)
    assert row.message is not None
    assert row.message.content == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"{", "line", "is not JSON: Expecting property name"),
        (b"[1]", "line", "is a list, not a JSON object"),
        (b"\xff\xfe", "line", "is not UTF-8 at byte 0"),
        (b'{"provider":"p","role":"r"}', "content", "is missing"),
        (b'{"provider":"p","role":null,"content":"c"}', "role", "is null"),
        (b'{"provider":1,"role":"r","content":"c"}', "provider", "is a number, not a string"),
        (b'{"id":7,"provider":"p","role":"r","content":"c"}', "id", "is a number"),
        (b'{"provider":"p","role":"r","content":"c","tags":"a"}', "tags", "is a string, not"),
        (b'{"provider":"p","role":"r","content":"c","tags":[1]}', "tags", "has a number at"),
        (b'{"provider":"p","role":"r","content":"c","timestamp":17}', "timestamp", "is a number"),
        (b'{"provider":"p","role":"r","content":"c","timestamp":"x"}', "timestamp", "is 'x'"),
        (b'{"provider":"p","role":"r","content":"c","metadata":[]}', "metadata", "is a list"),
        (b'{"provider":"p","role":"r","content":"c","mood":1}', "mood", "is not a field"),
        (b'{"provider":"p","role":"r","content":"c","content":"d"}', "line", "repeats the key"),
        (
            b'{"provider":"p","role":"r","content":"c","metadata":{"n":1e99999999999999999999}}',
            "metadata",
            "holds the number 1e99999999999999999999, beyond the 131,072 digits before",
        ),
        (
            b'{"provider":"p","role":"r","content":"c","metadata":{"n":{"a":1,"a":1}}}',
            "metadata",
            'repeats the key "a"',
        ),
        (
            b'{"provider":"p","role":"r","content":"c","metadata":{"n":1,"n":1}}',
            "metadata",
            'repeats the key "n"',
        ),
        (b'{"provider":1e99999,"role":"r","content":"c"}', "provider", "is a number, not"),
        (b'{"provider":NaN,"role":"r","content":"c"}', "provider", "holds NaN, which is not"),
        (b'{"provider":"p","role":"r","content":"\\ud800"}', "content", "holds a lone surrogate"),
        (b'{"provider":"p","role":"r","content":"c","\\ud800":1}', "\\ud800", "is not a field"),
        (b'{"provider":"p","role":"r","content":"\\u0000"}', "content", "holds U+0000"),
        (b'{"provider":"p","role":"r","content":"c","tags":[""]}', "tags[0]", "is required"),
    ],
)
def test_invalid_line_is_reported_with_field_and_reason(
    line: bytes, field: str, reason: str
) -> None:
    ((found, text),) = _problems(line)
    assert found == field
    assert text.startswith(reason)


def test_all_problems_of_a_line_are_reported() -> None:
    problems = _problems(b'{"provider":1,"content":"c","tags":{},"other":1}')
    assert [field for field, _ in problems] == ["provider", "role", "tags", "other"]


def test_server_fields_are_ignored_and_null_is_absent() -> None:
    line = (
        b'{"provider":"p","role":"r","content":"c","revision":5,"sequence":"x",'
        b'"created_at":null,"tags":null,"metadata":null,"session_id":null,"timestamp":null,"id":null}'
    )
    message, problems = read_line(line, 1)
    assert not problems
    assert message is not None
    assert (message.revision, message.created_at, message.timestamp) == (0, None, None)
    assert message.sequence == 0


def test_creation_time_is_read() -> None:
    start = b'{"provider":"p","role":"r","content":"c","created_at":'
    message, problems = read_line(start + b'"2025-01-02T03:04:05.000007+02:00"}', 1)
    assert not problems
    assert message is not None
    assert message.created_at == datetime(2025, 1, 2, 1, 4, 5, 7, tzinfo=UTC)
    for wrong in (b'"x"}', b"5}", b"[]}"):
        message, problems = read_line(start + wrong, 1)
        assert message is None
        assert [problem.field for problem in problems] == ["created_at"]


def test_line_without_id_gets_a_stable_id() -> None:
    line = b'{"provider":"p","role":"r","content":"c"}'
    ids = [m.id for m in (read_line(line, n)[0] for n in (1, 1, 2)) if m is not None]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0][14] == "5"


def test_endless_line_is_rejected_with_bounded_memory() -> None:
    good = b'{"id":"%d","provider":"p","role":"r","content":"c"}\n'
    text = good % 1 + b"x" * (3 * MAX_LINE) + b"\n" + good % 2
    source = JsonLines("x", io.BytesIO(text), None)
    rows = list(source.rows(None))
    assert [row.message is None for row in rows] == [False, True, False]
    assert rows[1].problems[0].reason.startswith("is longer than")
    assert len(rows[1].raw) == 1000
    assert rows[2].after == (len(text), 3)


def test_raw_lines_are_unchanged() -> None:
    source = JsonLines("x", io.BytesIO(), None)
    assert source.raw_json(b'{"a": 1.50}') == '{"a": 1.50}'
    assert json.loads(source.raw_json(b'{"a": 1')) == '{"a": 1'
    assert json.loads(source.raw_json(b"\xff")) == {"base64": "/w=="}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Dear diary, today\n", "neither JSON Lines nor a SQLite database: it starts with 'Dear"),
        (b' [ {"id": 1} ]', "is a JSON array"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b broken", "cannot read"),
        (b"SQLite format 3\x00 but no", "cannot read .* is not a SQLite database, or is encrypted"),
    ],
)
def test_unsupported_file_is_rejected(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CommandError, match=reason):
        open_source(str(path))


def test_truncated_compressed_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(SAMPLE.read_bytes() * 9)[:-50_000])
    source = open_source(str(path))
    with pytest.raises(CommandError, match="cannot read"):
        list(source.rows(None))
    source.close()


def test_legacy_rows_are_read_or_rejected(tmp_path: Path) -> None:
    path = legacy_database(tmp_path / "memory.db")
    rows = _read(path)
    assert _ids(rows) == ["m1", "m2", "m3"]
    assert [(row.key, row.problems[0]) for row in rows if row.problems] == [
        ("messages/rowid=4", ("id", "is NULL")),
        ("messages/rowid=5", ("timestamp", "is 'yesterday', which is not a time in ISO form")),
        ("messages/rowid=6", ("metadata", 'repeats the key "a"; JSONB would keep only one')),
        ("messages/rowid=7", ("id", "is required: 1 to 128 characters")),
    ]
    first = rows[0].message
    assert first is not None
    assert first.timestamp is not None
    assert (first.timestamp.isoformat(), first.tags) == ("2025-01-02T01:04:05+00:00", ("a", "b"))


def test_legacy_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE messages (ID, Provider, role, content, timestamp)")
        connection.execute("INSERT INTO messages VALUES ('a', 'p', 'r', 'c', '2025-01-01')")
    connection.close()
    assert _ids(_read(path)) == ["a"]


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("make", [legacy_database, store_database])
def test_reading_a_database_creates_no_files(make: Any, mode: str, tmp_path: Path) -> None:
    path = make(tmp_path / "data.db", journal_mode=mode)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    source = open_source(str(path))
    assert source.total(None) == len(list(source.rows(None)))
    assert {file.name for file in tmp_path.iterdir()} == set(before)
    source.close()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_store_is_read_while_its_server_writes(tmp_path: Path) -> None:
    path = store_database(tmp_path / "data.db", journal_mode="wal")
    source = open_source(str(path))
    rows = source.rows(None)
    assert next(rows).message is not None
    writer = sqlite3.connect(path)
    writer.execute("DELETE FROM messages WHERE id = 's2'")
    writer.commit()
    later = open_source(str(path))
    assert _ids(list(later.rows(None))) == ["s1", "s3"]
    assert later.total(None) == 2
    writer.close()
    source.close()
    later.close()


def test_database_with_an_interrupted_write_is_read_from_a_copy(tmp_path: Path) -> None:
    path = legacy_database(tmp_path / "memory.db", journal_mode="wal")
    writer = sqlite3.connect(path)
    writer.execute("UPDATE messages SET content = 'from the log' WHERE id = 'm1'")
    writer.commit()
    (tmp_path / "left").mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", tmp_path / "left" / f"memory.db{suffix}")
    writer.close()
    left = sorted(file.name for file in (tmp_path / "left").iterdir())
    source = open_source(str(tmp_path / "left" / "memory.db"))
    message = next(source.rows(None)).message
    assert message is not None
    assert message.content == "from the log"
    assert "has an interrupted write" in source.notes[0]
    source.close()
    assert sorted(file.name for file in (tmp_path / "left").iterdir()) == left


def test_invalid_row_of_a_store_is_rejected_alone(tmp_path: Path) -> None:
    path = store_database(tmp_path / "data.db")
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER messages_update_guard")
        connection.execute("UPDATE messages SET content = CAST(x'ff61' AS TEXT) WHERE id = 's2'")
    connection.close()
    rows = _read(path)
    assert _ids(rows) == ["s1", "s3"]
    assert rows[1].problems == (
        ("content", "is text with bytes that are not UTF-8, the first at 0"),
    )


def test_store_preserves_the_spelling_of_numbers(tmp_path: Path) -> None:
    rows = _read(store_database(tmp_path / "data.db"))
    message = rows[0].message
    assert message is not None
    assert str(message.metadata["n"]) == "1.50"


def test_unknown_database_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE messages (id, text)")
    connection.close()
    with pytest.raises(
        CommandError,
        match="a table messages without the columns provider, role, content, timestamp",
    ):
        open_source(str(path))


def test_compressed_database_is_read(tmp_path: Path) -> None:
    path = tmp_path / "memory.db.xz"
    path.write_bytes(lzma.compress(legacy_database(tmp_path / "memory.db").read_bytes()))
    assert _ids(_read(path)) == ["m1", "m2", "m3"]


def _database_header(pages: int) -> bytes:
    """Return the start of a database whose header states its number of pages of 4,096 bytes."""
    head = bytearray(b"SQLite format 3\x00".ljust(100, b"\x00"))
    head[16:18] = (4096).to_bytes(2, "big")
    head[28:32] = pages.to_bytes(4, "big")
    return bytes(head)


@pytest.mark.parametrize("module", [gzip, lzma, bz2])
@pytest.mark.parametrize("pages", [1, 0, 2**20])
def test_compressed_database_beyond_the_limit_is_refused(
    module: Any, pages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its header states a smaller size; the copy is bounded and removed."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = tmp_path / "bomb"
    path.write_bytes(module.compress(_database_header(pages) + bytes(64 << 20)))
    assert path.stat().st_size < 100_000
    with _largest_file(8 << 20), pytest.raises(CommandError) as caught:
        open_source(str(path), 8 << 20)
    assert "is a database of more than 0.00781 GiB" in str(caught.value)
    assert str(caught.value).endswith(
        "raise --temp-limit, or decompress it to a file and import that"
    )
    assert list(temporary.iterdir()) == []


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let the system refuse files of more than ``size`` bytes, as a proof that none is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_database_larger_than_the_free_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.db.gz"
    pages = shutil.disk_usage(tempfile.gettempdir()).free // 4096 + 1
    path.write_bytes(gzip.compress(_database_header(pages) + bytes(10_000)))
    with pytest.raises(CommandError, match=r"GiB free; set TMPDIR to a folder of another disk"):
        open_source(str(path), 1 << 60)


def test_xz_that_needs_much_memory_is_refused(tmp_path: Path) -> None:
    """A file of 200 bytes can make the decompressor allocate 1.5 GiB."""
    path = tmp_path / "lines.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30, "preset": 0}]
    small = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    line = b'{"provider":"p","role":"r","content":"c"}\n'
    path.write_bytes(lzma.compress(line, filters=small) + lzma.compress(line, filters=filters))
    source = open_source(str(path))
    rows = source.rows(None)
    assert next(rows).message is not None  # The first stream needs little.
    with pytest.raises(CommandError, match="decompression needs more than 256 MiB of memory"):
        list(rows)
    source.close()


def test_xz_streams_and_padding_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.xz"
    half = len(SAMPLE.read_bytes()) // 2
    parts = (SAMPLE.read_bytes()[:half], SAMPLE.read_bytes()[half:])
    padding = bytes(3 << 20)
    path.write_bytes(padding.join(map(lzma.compress, parts)) + padding)
    assert _ids(_read(path)) == [message["id"] for message in sample()]
    source = open_source(str(path))
    rows = list(source.rows(None))
    again = open_source(str(path))
    assert next(again.rows(rows[250].after)).message == rows[251].message
    assert next(again.rows(rows[5].after)).message == rows[6].message
    source.close()
    again.close()
    path.write_bytes(lzma.compress(SAMPLE.read_bytes())[:-100])
    cut = open_source(str(path))
    with pytest.raises(CommandError, match="ends early"):
        list(cut.rows(None))
    cut.close()
