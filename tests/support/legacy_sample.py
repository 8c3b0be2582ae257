"""Legacy ``memory.db`` of real dialogues, with typical anomalies."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.legacy_db import RawText, legacy_db

SAMPLE = Path(__file__).parents[1] / "data" / "sgd-sample.jsonl"

ODD_SESSION = "odd rows"

_HALF_PAST_FIVE = timezone(timedelta(hours=5, minutes=30))

_ASIDE: tuple[dict[str, Any], ...] = (
    {"id": None, "content": "a row without an id"},
    {"id": b"\x00\x01blob", "content": "its id is a blob"},
    {"id": "odd-nan", "metadata": '{"score": NaN}'},
    {"id": "odd-twice", "metadata": '{"a": 1, "a": 2}'},
    {"id": "odd-nul", "content": "before\x00after"},
    {"id": "odd-bytes", "content": RawText(b"caf\xe9 in Latin-1")},
    {"id": "odd-long", "content": "x" * 1_000_001},
    {"id": "odd-tags", "tags": '{"not": "a list"}'},
    {"id": "odd-time", "timestamp": "yesterday"},
)
"""Rows without a faithful representation, or with values that cannot be stored; they are
quarantined.
"""

_KEPT: tuple[dict[str, Any], ...] = (
    {"id": 4711, "content": "its id is a number"},
    {"id": "odd-null-tags", "tags": None, "metadata": None},
    {"id": "odd-empty", "tags": "", "metadata": "", "session_id": ""},
    {"id": "odd-no-session", "session_id": None, "created_at": None},
    {"id": "odd-offset", "timestamp": "2025-02-01T12:00:00.000001+05:30"},
    {"id": "odd-fraction", "timestamp": "2025-02-01 12:00:00.123"},
    {"id": "odd-unix", "timestamp": 1_740_000_000},
    {"id": "odd-ünï ☃ 東京", "content": "naïve café 東京 ☃ \U0001f600", "tags": '["ünïcode ☃"]'},
    {"id": "odd-numbers", "metadata": '{"big": 12345678901234567890, "e": 1e3, "f": 0.10}'},
    {"id": "odd-size", "content": "reservation " * 8000},
    {"id": "odd-blank", "content": " \n "},
    {"id": "odd-nothing", "content": "", "metadata": '{"tool_calls": [{"name": "find"}]}'},
    {"id": "odd-nanoseconds", "timestamp": "2025-02-01T12:00:00.123456789Z"},
)
"""Unusual rows with exactly one valid interpretation."""

_MORE = """
ALTER TABLE messages ADD COLUMN importance INTEGER;
UPDATE messages SET importance = rowid % 5 WHERE rowid % 50 = 0;
INSERT INTO files (id, filename, filepath, file_type, uploaded_at) VALUES
    (NULL, 'no id', 'in/no', 'markdown', '2025-03-01'),
    ('odd', 'ödd.md', 'in/odd', 'markdown', '2025-03-01T09:00');
"""


class Sample(NamedTuple):
    """Contents of a generated file."""

    served: int
    """Rows that become messages."""
    quarantined: int
    """Rows that are quarantined during the import."""
    files: int


def legacy_sample(path: Path, rows: int, long_every: int = 20) -> Sample:
    """Create a legacy file with ``rows`` plain rows and two dozen anomalies.

    One plain row in ``long_every`` is long: backfill batches that take long to prepare meet more
    concurrent writes.
    """
    plain = itertools.islice(_plain_rows(long_every), rows)
    legacy_db(path, itertools.chain(plain, map(_odd, _ASIDE), map(_odd, _KEPT)), more=_MORE)
    return Sample(rows + len(_KEPT), len(_ASIDE), 5)


def count_rows(path: Path) -> tuple[int, int]:
    """Return the number of messages and files in a legacy file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (messages,) = connection.execute("SELECT count(*) FROM messages").fetchone()
        (files,) = connection.execute("SELECT count(*) FROM files").fetchone()
    return messages, files


def _plain_rows(long_every: int) -> Iterator[dict[str, Any]]:
    """Yield rows as the legacy application writes them, repeating the dialogues."""
    with SAMPLE.open(encoding="utf-8") as lines:
        dialogues = [json.loads(line) for line in lines]
    whole = " ".join(item["content"] for item in dialogues)
    for turn in itertools.count():
        for number, item in enumerate(dialogues):
            said = datetime.fromisoformat(item["timestamp"]) + timedelta(days=turn)
            if number % 7 == 0:
                said = said.astimezone(_HALF_PAST_FIVE)
            elif number % 2:
                said = said.replace(tzinfo=None)
            yield {
                "id": item["id"] if not turn else f"{item['id'][:23]}-{turn:05}-{number:04}",
                "provider": item["provider"],
                "role": item["role"],
                "content": item["content"] if number % long_every else whole[number * 9 :],
                "tags": json.dumps(item["tags"]),
                "timestamp": said.isoformat(),
                "metadata": json.dumps({**item["metadata"], "round": turn}),
                "session_id": f"{item['session_id']}-{turn}",
                "created_at": said.strftime("%Y-%m-%d %H:%M:%S"),
            }


def _odd(different: dict[str, Any]) -> dict[str, Any]:
    usual = {
        "id": "odd",
        "provider": "openai",
        "role": "user",
        "content": "an odd row",
        "tags": '["odd"]',
        "timestamp": "2025-02-01T00:00:00",
        "metadata": "{}",
        "session_id": ODD_SESSION,
        "created_at": "2025-02-01 00:00:01",
    }
    return usual | different
