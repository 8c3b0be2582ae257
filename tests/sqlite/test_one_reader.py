"""`inspect`, `serve --sqlite` and `import` find the same rows, values and reasons in a file."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore import Message, _json
from sagastore.canonical_json import canonical_object
from sagastore.cli.failures import CommandError
from sagastore.importers import Row, open_source
from sagastore.legacy import reason_of
from sagastore_server.sqlite.legacy.report import look_into
from sagastore_server.sqlite.opening import open_for_writing
from sagastore_server.storage.errors import CannotOpenError
from tests.support.foreign_databases import FILES, ROW
from tests.support.legacy_db import RawText, contents_of
from tests.support.strategies import storable_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Found(NamedTuple):
    """What a reader found in a file."""

    refusal: str
    """Why it refuses the file; empty if it does not."""
    messages: Sequence[tuple[Any, ...]] = ()
    rejected: Sequence[tuple[Any, ...]] = ()
    """Key, field and reason of the rows that are no messages."""
    raw: Sequence[Any] = ()
    """The raw values of these rows, as JSON."""


def inspected(path: Path) -> tuple[Found, int]:
    """Return what ``inspect`` finds, and the number of rows that it would serve."""
    try:
        report = look_into(path)
    except CannotOpenError as exc:
        return Found(str(exc)), 0
    if report.legacy is None:
        assert report.refusal or report.state.kind.value == "empty"
        return Found(report.refusal or "empty"), 0
    assert report.legacy.rows == report.legacy.served + report.legacy.quarantined
    nothing = report.legacy.served == 0 and report.legacy.files in {None, 0}
    assert nothing == ("no row that can be served" in str(report.refusal))
    rejected = [tuple(row) for row in report.legacy.set_aside]
    return Found("", (), rejected), report.legacy.served


def taken_over(path: Path) -> Found:
    """Return what ``serve --sqlite`` finds."""
    try:
        open_for_writing(path, lambda *_: None).close()
    except CannotOpenError as exc:
        return Found(str(exc))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        messages = connection.execute(
            "SELECT id, provider, role, content, tags, timestamp, metadata, session_id, created_at"
            " FROM messages ORDER BY number"
        ).fetchall()
        aside = connection.execute(
            "SELECT source_key, field, reason, row FROM quarantine"
            " WHERE source_key LIKE 'messages/%' ORDER BY rowid"
        ).fetchall()
    values = [(*row[:4], json.loads(row[4]), *row[5:]) for row in messages]
    return Found("", values, [row[:3] for row in aside], [json.loads(row[3]) for row in aside])


def imported(path: Path) -> Found:
    """Return what ``import`` finds; reading must not depend on where it resumes."""
    try:
        source = open_source(str(path))
    except CommandError as exc:
        return Found(str(exc))
    rows = list(source.rows(None))
    assert source.total(None) == len(rows)
    raw = [json.loads(source.raw_json(row.raw)) for row in rows if row.problems]
    source.close()
    if len(rows) > 2:
        again = open_source(str(path))
        assert list(again.rows(rows[1].after)) == rows[2:]
        again.close()
    rejected = [
        (row.key, row.problems[0].field, reason_of(row.problems)) for row in rows if row.problems
    ]
    return Found("", [_values(row) for row in rows if not row.problems], rejected, raw)


def _values(row: Row) -> tuple[Any, ...]:
    message = row.message
    assert isinstance(message, Message)
    return (
        *(message.id, message.provider, message.role, message.content, list(message.tags)),
        _micros(message.timestamp),
        canonical_object(_json.dumps(message.metadata)),
        *(message.session_id, _micros(message.created_at)),
    )


def _micros(value: datetime | None) -> int | None:
    return None if value is None else (value - EPOCH) // timedelta(microseconds=1)


def assert_same(path: Path) -> Found:
    """Read copies of a file in all three ways, and compare; return what was found."""
    path.chmod(0o600)  # Else the server logs that it withdraws the access of other users.
    before = contents_of(path.parent)
    by_inspect, servable = inspected(path)
    by_import = imported(path)
    assert contents_of(path.parent) == before
    by_takeover = taken_over(path)
    if by_inspect.refusal == "empty":
        # A server creates a new store in it, and there is nothing to import.
        assert not by_import.messages
        assert not by_takeover.messages
        return by_import
    if by_inspect.refusal:
        reason = by_inspect.refusal.removeprefix("cannot be imported: ").partition(": ")[0]
        for refusal in (by_import.refusal, by_takeover.refusal):
            assert reason in refusal
            assert len(refusal.splitlines()) == 1
            assert "; " in refusal  # It says what to do.
        return by_import
    assert by_import == by_takeover
    assert by_inspect.rejected == by_import.rejected
    assert servable == len(by_import.messages)
    return by_import


@pytest.mark.parametrize("name", FILES)
def test_file_is_read_alike(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a file?.db"
    FILES[name](path)
    assert_same(path)


def _read(name: str, tmp_path: Path) -> Found:
    path = tmp_path / "memory.db"
    FILES[name](path)
    return assert_same(path)


@pytest.mark.parametrize("name", ["rowid", "_ROWID_", "oid and rowid", "a rowid by another name"])
def test_columns_named_as_the_rowid_hide_no_row(name: str, tmp_path: Path) -> None:
    assert [message[0] for message in _read(name, tmp_path).messages] == ["m0", "m1", "m2"]


def test_table_whose_rowid_is_hidden_is_refused(tmp_path: Path) -> None:
    for name in ("all names of the rowid", "a descending key"):
        folder = tmp_path / name
        folder.mkdir()
        found = _read(name, folder)
        assert found.refusal.endswith("(ALTER TABLE messages RENAME COLUMN oid TO oid_)")
    # The advice works.
    path = tmp_path / "advice" / "memory.db"
    path.parent.mkdir()
    FILES["all names of the rowid"](path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE messages RENAME COLUMN oid TO oid_")
    assert len(assert_same(path).messages) == 3


@pytest.mark.parametrize("name", ["view", "without rowid"])
def test_advice_to_make_a_table_works(name: str, tmp_path: Path) -> None:
    found = _read(name, tmp_path)
    assert "messages" in found.refusal
    statements = found.refusal[found.refusal.index("CREATE TABLE") :].partition(")")[0]
    with contextlib.closing(sqlite3.connect(tmp_path / "memory.db")) as connection:
        connection.executescript(statements)
    assert len(assert_same(tmp_path / "memory.db").messages) == 1


@pytest.mark.parametrize("name", ["virtual column", "stored column"])
def test_generated_column_is_read(name: str, tmp_path: Path) -> None:
    assert [message[7] for message in _read(name, tmp_path).messages] == ["S1"]


@pytest.mark.parametrize("name", ["column that fails", "further column that fails"])
def test_column_that_fails_rejects_its_row_alone(name: str, tmp_path: Path) -> None:
    found = _read(name, tmp_path)
    assert [message[0] for message in found.messages] == ["m0", "m1", "m3"]
    ((key, _, reason),) = found.rejected
    assert key == "messages/rowid=3"
    assert "is a generated column that SQLite cannot compute (malformed JSON)" in reason


def test_equal_times_keep_the_order_of_rowids(tmp_path: Path) -> None:
    found = _read("equal times", tmp_path)
    assert [message[0] for message in found.messages] == [f"{n % 7}-{n}" for n in range(20)]


def test_null_content_is_rejected_and_empty_content_is_not(tmp_path: Path) -> None:
    found = _read("odd rows", tmp_path)
    reasons = {key: reason for key, _, reason in found.rejected}
    assert reasons["messages/rowid=11"] == "content: is NULL"
    assert "no text" in [message[0] for message in found.messages]


def test_locked_file_is_refused_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagastore_server.sqlite.legacy.importer._BUSY_TIMEOUT_MS", 10)
    monkeypatch.setattr("sagastore.legacy.database.BUSY_TIMEOUT_MS", 10)
    path = tmp_path / "memory.db"
    FILES["plain"](path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        for found in (inspected(path)[0], imported(path), taken_over(path)):
            assert "another program" in found.refusal
            assert "stop" in found.refusal
    assert len(assert_same(path).messages) == 3


@pytest.mark.parametrize("name", ["fifo", "folder", "missing", "loop"])
def test_path_of_no_file_is_refused_by_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "fifo":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "loop":
        path.symlink_to(path)
    assert inspected(path)[0].refusal
    if name != "missing":  # A server would create it.
        assert taken_over(path).refusal
    if name != "fifo":  # Standard input may be one; an import reads it to its end.
        assert imported(path).refusal


# ------------------------------------------------------------------ schemas by Hypothesis

_NAMES = ["rowid", "_rowid_", "oid", "OID", "number", "select", 'a"b', "x y", "é", "%s", "'"]
_TYPES = ["", "TEXT", "INTEGER", "BLOB", "REAL", "ANY", "DATETIME", "VARCHAR(5)"]
_GENERATED = [
    "'g'",
    "json_extract(metadata, '$.s')",
    "json_extract(content, '$.s')",
    "upper(role)",
    "abs(-9223372036854775808)",
    "substr(x'ff', 1)",
]
_VALUES = st.one_of(
    storable_text,
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=5),
    st.binary(max_size=5).map(RawText),
    st.sampled_from(["", "m1", "\x00", "[]", '["a"]', "{}", '{"s": 1e400}', '{"s": 1e99999999}']),
    st.sampled_from(["2025-04-02", "2025-04-02T10:00:00Z", 1_743_588_000, "never"]),
)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@st.composite
def schemas(draw: st.DrawFn) -> list[tuple[str, list[Any]]]:
    """Return statements that make a file with a table ``messages`` of any shape."""
    required = ["id", "provider", "role", "content", "timestamp"]
    optional = draw(st.lists(st.sampled_from(["tags", "metadata", "session_id", "created_at"]),
                             unique=True))  # fmt: skip
    extra = draw(st.lists(st.sampled_from(_NAMES), unique_by=str.lower, max_size=4))
    names = draw(st.permutations(required + optional + extra))
    types = {name: draw(st.sampled_from(_TYPES)) for name in names}
    constraint = draw(st.sampled_from(["", "", " PRIMARY KEY", " UNIQUE", " PRIMARY KEY DESC"]))
    keyed = draw(st.sampled_from(["id", *extra]))
    cased = {name: draw(st.sampled_from([name, name.upper(), name.title()])) for name in names}
    columns = [
        f"{_quoted(cased[name])} {types[name]}" + (constraint if name == keyed else "")
        for name in names
    ]
    suffix = draw(st.sampled_from(["", "", "", "", " WITHOUT ROWID"])) if constraint else ""
    table = draw(st.sampled_from(["messages", "Messages", '"MESSAGES"']))
    made: list[tuple[str, list[Any]]] = [
        (f"CREATE TABLE {table} ({', '.join(columns)}){suffix}", [])
    ]
    for _ in range(draw(st.integers(0, 6))):
        row = {name: draw(_VALUES) for name in names}
        likely = {
            "id": "m1",
            "provider": "p",
            "role": "r",
            "content": "c",
            "timestamp": "2025-04-02",
        }
        for name, value in likely.items():
            if draw(st.booleans()):
                row[name] = draw(st.sampled_from([value, "m2"])) if name == "id" else value
        marks = ["CAST(? AS TEXT)" if isinstance(row[name], RawText) else "?" for name in names]
        into = ", ".join(_quoted(name) for name in names)
        made.append((f"INSERT OR IGNORE INTO messages ({into}) VALUES ({', '.join(marks)})",
                     list(row.values())))  # fmt: skip
    if draw(st.booleans()):
        free = [name for name in ("tags", "metadata", "session_id", "made") if name not in names]
        name, formula = draw(st.sampled_from(free)), draw(st.sampled_from(_GENERATED))
        made.append((f"ALTER TABLE messages ADD COLUMN {name} AS ({formula})", []))
    return made


@settings(max_examples=20, deadline=None)
@given(schemas())
def test_any_table_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory, statements: list[tuple[str, list[Any]]]
) -> None:
    path = tmp_path_factory.mktemp("schema") / "memory.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for sql, values in statements:
            # A type or a key may refuse a value, and a formula a column that the table lacks.
            with contextlib.suppress(sqlite3.Error):
                connection.execute(sql, values)
    assert_same(path)


def test_rows_of_a_fixture_are_what_they_say() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE messages (id, provider, role, content, tags, timestamp,"
                           " metadata, session_id)")  # fmt: skip
        connection.execute(ROW.format(1))
        assert connection.execute("SELECT id, metadata FROM messages").fetchall() == [
            ("m1", '{"session": "S1"}')
        ]
