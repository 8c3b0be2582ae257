"""Conversion between messages and rows, and the search columns of a row."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from sagastore_server.search.analysis import analyze
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.model import Message, NewMessage

_EPOCH = 946_684_800_000_000
"""Microseconds from 1970-01-01, the epoch of messages, to 2000-01-01, that of PostgreSQL."""

COLUMNS = (
    "id",
    "provider",
    "role",
    "content",
    "tags",
    "timestamp",
    "metadata",
    "session_id",
    "created_at",
    "revision",
    "sequence",
    "terms",
    "search",
)
"""The columns of a row in the order of ``row_of``."""

Row = tuple[Any, ...]

SearchColumns = tuple[str, bytes]
"""The columns ``terms`` and ``search``."""


def encode_time(micros: int) -> tuple[int]:
    """Return asyncpg's form of a time. Exact for the years 0001 to 9999."""
    return (micros - _EPOCH,)


def decode_time(value: tuple[int]) -> int:
    """Return the microseconds of a time that asyncpg received."""
    return value[0] + _EPOCH


def tsvector(lexemes: Iterable[str]) -> bytes:
    """Return the binary form of a tsvector without positions (``tsvectorrecv``).

    The form is a count, then each lexeme with a terminating zero byte and zero positions. The
    lexemes are sorted by their bytes.
    """
    ordered = sorted(lexemes)
    return struct.pack(">i", len(ordered)) + "".join([one + "\0\0\0" for one in ordered]).encode()


def unchanged(value: bytes) -> bytes:
    """Encode or decode a value that already has its binary form."""
    return value


def message_from_row(row: Sequence[Any]) -> Message:
    """Return the message of a row in the column order of queries.sql."""
    tags = () if row[4] == "[]" else tuple(json.loads(row[4]))
    return Message._make((*row[:4], tags, *row[5:11]))


def row_of(message: Message, searched: SearchColumns) -> Row:
    """Return the row of a message in the order of ``COLUMNS``.

    ``searched`` is the result of ``search_columns`` for its content.
    """
    return (*message[:4], canonical_tags(message.tags), *message[5:], *searched)


def search_columns_of(draft: NewMessage) -> SearchColumns:
    """Return the search columns of a draft: the ``StorageBackend.indexer`` of this store."""
    return search_columns(draft.content)


def search_columns(content: str) -> SearchColumns:
    """Return ``terms`` and ``search`` of a text. The only code that computes them."""
    stems, words = analyze(content)
    return f" {' '.join(stems)} ", tsvector({*stems, *["=" + word for word in words]})
