"""Baseline: a loop of executemany into the store's own schema.

    python -m tools.benchmarks.bare_sqlite FILE inside|before NAME COUNT

One process, one connection, WAL, ``synchronous=FULL``, one transaction per thousand messages: rows
of ``messages`` and of the FTS5 table, with the store's own statements, triggers, constraints and
indexes. Everything else is left out: network, validation, the lookup of stored ids, persistent
revisions, and answers.

``inside``: the terms are computed in the loop, as every insert of a message requires. ``before``:
the terms are computed before the clock starts, which no real insert can do.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sagastore_server.sqlite.connection import WRITER_CACHE_KIB
from sagastore_server.sqlite.files import SCHEMA_VERSION, apply_step, register_owner_function
from sagastore_server.sqlite.index_terms import fts_columns
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.model import Message
from tools.benchmarks.messages import chunks, stored_messages

Rows = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
    register_owner_function(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version + 1, SCHEMA_VERSION + 1):
        apply_step(connection, number)
    return connection


def _rows(messages: Sequence[Message], number: int) -> Rows:
    """Return the parameters of both statements; messages are numbered from ``number``."""
    rows = [
        (*one[:4], canonical_tags(one.tags), *one[5:10], at)
        for at, one in enumerate(messages, number)
    ]
    terms = [
        (at, *fts_columns(one.content, one.tags, one.metadata))
        for at, one in enumerate(messages, number)
    ]
    return rows, terms


def _insert(connection: sqlite3.Connection, rows: Rows) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(QUERIES["insert"], rows[0])
    connection.executemany(QUERIES["index"], rows[1])
    connection.execute("COMMIT")


def main() -> None:
    """Insert the messages and print the elapsed seconds."""
    path, terms, name, count = sys.argv[1:]
    batches = chunks(stored_messages(name, 0, int(count)))
    with closing(_opened(Path(path))) as connection:
        (last,) = connection.execute(QUERIES["last_sequence"]).fetchone()
        starts = [last + 1 + number * len(batches[0]) for number in range(len(batches))]
        plan = list(zip(batches, starts, strict=True))
        if terms == "before":
            ready = [_rows(*one) for one in plan]
            began = time.perf_counter()
            for rows in ready:
                _insert(connection, rows)
        else:
            began = time.perf_counter()
            for one in plan:
                _insert(connection, _rows(*one))
        seconds = time.perf_counter() - began
    sys.stdout.write(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
