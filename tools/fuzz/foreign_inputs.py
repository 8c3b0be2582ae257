"""Files that are no valid input of `inspect` and `import`, or just barely: made and mutated.

Input N of a seed is always the same.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import random
import sqlite3
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["ForeignFile", "made"]

_REQUIRED = ("id", "provider", "role", "content", "timestamp")
_OPTIONAL = ("tags", "metadata", "session_id", "created_at")
_FURTHER = ("rowid", "_rowid_", "oid", "number", 'a"b', "é", "select", "files")
_TYPES = ("", "TEXT", "INTEGER", "INTEGER PRIMARY KEY", "BLOB", "REAL", "TEXT UNIQUE", "ANY")
_FORMULAS = (
    "'x'",
    "json_extract(metadata, '$.s')",
    "json_extract(content, '$')",
    "abs(-9223372036854775808)",
    "zeroblob(1000000)",
    "upper(role)",
)
_NUMBERS = ("1e99999999999999999999", "-0", "1E+400", "1.50", "9" * 5000, "1e131071", "1e131072",
            "-1e-16383", "1e-16384", "NaN", "-Infinity", "01", "1.", "0.0e0")  # fmt: skip
_TEXTS = ("", "m1", "m2", "user", "openai", "\x00", "\ud800", "\U0001f600", "é", "x" * 129, "null",
          "[]", '["a"]', "{}", '{"s": 1}', "2025-04-02", "2025-04-02T10:00:00Z", "never",
          "\u202e\x1b[31m")  # fmt: skip
_SCHEMA = "CREATE TABLE messages (id TEXT PRIMARY KEY, provider, role, content, tags, timestamp, metadata, session_id)"  # noqa: E501
_FILES = "CREATE TABLE files (id, filename, filepath, file_type, uploaded_at, metadata)"


class ForeignFile(NamedTuple):
    """A file to give to the commands."""

    number: int
    kind: str
    content: bytes


def made(seed: str, number: int) -> ForeignFile:
    """Return input ``number`` of ``seed``."""
    rng = random.Random(f"{seed}-{number}")
    kind, make = rng.choices(_KINDS, weights=[weight for _, _, weight in _WEIGHED])[0]
    return ForeignFile(number, kind, make(rng))


# ------------------------------------------------------------------ databases


def _database(rng: random.Random) -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with contextlib.closing(connection):
        for sql, values in _statements(rng):
            # Some are refused by SQLite: a key, a type, a column that is missing.
            with contextlib.suppress(sqlite3.Error, UnicodeError):
                connection.execute(sql, values)
        # A database without pages cannot be serialized; its file is empty.
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        return connection.serialize() if pages else b""


def _statements(rng: random.Random) -> list[tuple[str, list[Any]]]:
    names = [*_REQUIRED, *rng.sample(_OPTIONAL, rng.randint(0, 4))]
    names += rng.sample(_FURTHER, rng.choice((0, 0, 1, 3)))
    if rng.random() < 0.05:
        names.remove(rng.choice(names))
    rng.shuffle(names)
    columns = [f"{_quoted(name)} {rng.choice(_TYPES if rng.random() < 0.3 else ('',))}"
               for name in names]  # fmt: skip
    table = rng.choice(("messages", "messages", "Messages", "m2"))
    options = rng.choice(("", "", "", "", " STRICT", " WITHOUT ROWID"))
    found: list[tuple[str, list[Any]]] = [
        (f"PRAGMA encoding = '{rng.choice(('UTF-8',) * 9 + ('UTF-16le',))}'", []),
        (f"CREATE TABLE {table} ({', '.join(columns)}){options}", []),
        (_FILES if rng.random() < 0.3 else "SELECT 1", []),
        ("INSERT INTO files VALUES ('f', 'a', 'b', 'c', '2025-04-02', '{}')", []),
    ]
    into = ", ".join(map(_quoted, names))
    marks = ", ".join("?" * len(names))
    for _ in range(rng.choice((0, 1, 3, 12))):
        values = [_value(rng, name) for name in names]
        found.append((f"INSERT INTO {table} ({into}) VALUES ({marks})", values))
    later = [
        "CREATE VIEW messages AS SELECT * FROM m2",
        f"ALTER TABLE {table} ADD COLUMN made AS ({rng.choice(_FORMULAS)})",
        f"ALTER TABLE {table} ADD COLUMN session_id AS ({rng.choice(_FORMULAS)})",
        f"UPDATE {table} SET content = CAST(x'ff00' AS TEXT) WHERE id = 'm1'",
        f"UPDATE {table} SET rowid = -9223372036854775808 WHERE id = 'm1'",
        f"CREATE TRIGGER t AFTER INSERT ON {table} BEGIN SELECT no_such_function(); END",
        "CREATE VIEW broken AS SELECT * FROM nowhere",
        "CREATE TABLE quarantine (x)",
        f"PRAGMA application_id = {rng.choice((0, 7, 0x53414741))}",
        f"PRAGMA user_version = {rng.choice((0, 1, 6, 999))}",
    ]
    return found + [(sql, []) for sql in later if rng.random() < 0.2]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _value(rng: random.Random, name: str) -> Any:
    usual = {"id": f"m{rng.randint(1, 9)}", "provider": "p", "role": "user", "content": "text",
             "timestamp": "2025-04-02T10:00:00"}  # fmt: skip
    if rng.random() < 0.7:
        return usual.get(name)
    return rng.choice((
        None, rng.randint(-(2**63), 2**63 - 1), rng.uniform(-1e300, 1e300), float("inf"),
        rng.randbytes(4), f'{{"s": {rng.choice(_NUMBERS)}}}',
        rng.choice(_TEXTS).encode("utf-8", "replace").decode(),
    ))  # fmt: skip


def _mutated(make: Callable[[random.Random], bytes]) -> Callable[[random.Random], bytes]:
    """Return a maker that damages what another makes."""

    def damaged(rng: random.Random) -> bytes:
        data = bytearray(make(rng))
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(len(data) + 1)
            # Half of the changes are in the header, or in the schema after it.
            if rng.random() < 0.5:
                at = min(at, rng.randrange(200))
            size = rng.choice((1, 1, 4, 100))
            change = rng.random()
            if change < 0.6:
                data[at : at + size] = rng.randbytes(size)
            elif change < 0.8:
                del data[at : at + size * 10]
            elif change < 0.9:
                data[at:at] = rng.randbytes(size)
            else:
                data[at : at + size * 40] = bytes(size * 40)
        return bytes(data)

    return damaged


# ------------------------------------------------------------------ text


def _json(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(_NUMBERS)
    if kind < 0.6 or depth > 4:
        return json.dumps(rng.choice(_TEXTS))
    if kind < 0.65:
        return "[" * 2000
    if kind < 0.8:
        return "[" + ", ".join(_json(rng, depth + 1) for _ in range(rng.randint(0, 3))) + "]"
    keys = [json.dumps(rng.choice((*_TEXTS, *_REQUIRED))) for _ in range(rng.randint(0, 4))]
    return "{" + ", ".join(f"{key}: {_json(rng, depth + 1)}" for key in keys) + "}"


def _line(rng: random.Random) -> str:
    usual = {"provider": '"p"', "role": '"user"', "content": '"text"'}
    fields = dict(usual)
    for name in (*_REQUIRED, *_OPTIONAL, "revision", "messages", "mapping"):
        if rng.random() < 0.25:
            fields[name] = _json(rng)
        elif rng.random() < 0.05:
            fields.pop(name, None)
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def _lines(rng: random.Random) -> bytes:
    lines = [rng.choice((_line, _line, _json))(rng) for _ in range(rng.choice((0, 1, 5, 30)))]
    if rng.random() < 0.5:
        lines.insert(0, '{"provider": "p", "role": "user", "content": "fine"}')
    return rng.choice(("\n", "\n", "\r\n", "\n\n")).join(lines).encode()


def _document(rng: random.Random) -> bytes:
    turn = {"role": "user", "content": rng.choice(_TEXTS), "from": "human", "value": "v"}
    value: Any = rng.choice((
        {"mapping": {"a": {"message": None, "children": []}}}, {"chat_messages": [{"sender": 1}]},
        {"messages": [turn]}, {"conversations": [turn]}, turn, [turn], [[]], [1], {},
    ))  # fmt: skip
    text = json.dumps(value, indent=rng.choice((None, 2)))
    encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"))
    return text.encode(encoding)


def _table(rng: random.Random) -> bytes:
    delimiter = rng.choice(",;\t|")
    rows = [("provider", "role", "content"), *(rng.choices(_TEXTS, k=3) for _ in range(3))]
    return "\n".join(delimiter.join(row) for row in rows).encode("utf-8", "replace")


def _bytes(rng: random.Random) -> bytes:
    marks = (b"", b"SQLite format 3\x00", b"PK\x03\x04", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd",
             b"BZh9", b"\xfd7zXZ\x00", b"\xff\xfe", b"PAR1", b"{", b"[",
             b"\x37\x7f\x06\x82")  # fmt: skip
    return rng.choice(marks) + rng.randbytes(rng.choice((0, 1, 30, 3000)))


def _packed(rng: random.Random) -> bytes:
    content = rng.choice((_lines, _database, _document))(rng)
    if rng.random() < 0.2:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(rng.choice(("conversations.json", "a/b c.jsonl", "é")), content)
        return file.getvalue()
    packed = rng.choice((gzip.compress, bz2.compress, lzma.compress))(content)
    end = rng.choice((b"", b"", b"garbage", bytes(1000), packed))
    return (packed + end)[: rng.choice((len(packed + end), len(packed) - 5, 20))]


_WEIGHED: tuple[tuple[str, Callable[[random.Random], bytes], int], ...] = (
    ("database", _database, 30),
    ("damaged database", _mutated(_database), 25),
    ("lines", _lines, 20),
    ("damaged lines", _mutated(_lines), 5),
    ("document", _document, 5),
    ("table", _table, 3),
    ("bytes", _bytes, 4),
    ("packed", _packed, 8),
)
_KINDS = [(kind, make) for kind, make, _ in _WEIGHED]
