"""Auxiliary rows: extra values and quarantine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest  # noqa: TC002 - the fixtures' types are resolved at run time

from sagastore_server.sqlite import auxiliary_rows
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.auxiliary_rows import (
    AuxiliaryTallier,
    extra_values,
    quarantine_values,
)
from sagastore_server.storage.replication import ExtraValue
from tests.sqlite.sources import opened_source
from tests.support.legacy_db import MESSAGES, PLAIN, legacy_db


async def _all_extras(source: SQLiteSource, limit: int = 2) -> list[ExtraValue]:
    found: list[ExtraValue] = []
    while rows := await source.extras(found[-1][:2] if found else ("", ""), limit):
        found += rows
    return found


async def _check_tallies(source: SQLiteSource) -> None:
    """Compare with an independent read, sorted here."""
    quarantine, extras = AuxiliaryTallier(), AuxiliaryTallier()
    quarantine.add_all(map(quarantine_values, await source.quarantine(0, 10_000)))
    values = sorted(
        await _all_extras(source), key=lambda row: (row.message_id.encode(), row.name.encode())
    )
    extras.add_all(map(extra_values, values))
    assert await source.carried() == (quarantine.tally(), extras.tally())


async def test_extra_values_keep_their_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auxiliary_rows, "PAGE_ROWS", 2)
    messages = MESSAGES.replace("created_at DATETIME", "mood, Ärger, created_at DATETIME")
    values: list[tuple[str, Any, Any]] = [
        ("int", 2**62, 1),
        ("real", 1.0, None),
        ("text", "na\0ja", "x"),
        ("blob", b"\x00\xff", b""),
        ("null", None, None),
        ("große", "ü", -0.0),
    ]
    rows = [PLAIN | {"id": key, "mood": mood, "Ärger": other} for key, mood, other in values]
    more = """UPDATE messages SET mood = CAST(x'ff41' AS TEXT) WHERE id = 'real';
              UPDATE messages SET "Ärger" = 9e999 WHERE id = 'null';"""
    path = legacy_db(tmp_path / "memory.db", rows, messages=messages, more=more)
    async with opened_source(path) as source:
        extras = await _all_extras(source)
        assert extras == sorted(extras, key=lambda one: (one[0].encode(), one[1].encode()))
        assert {(one.message_id, one.name): json.loads(one.value)["value"] for one in extras} == {
            ("int", "mood"): 2**62,
            ("int", "Ärger"): 1,
            ("real", "mood"): {"base64": "/0E=", "type": "text"},
            ("text", "mood"): "na\0ja",
            ("text", "Ärger"): "x",
            ("blob", "mood"): {"base64": "AP8="},
            ("blob", "Ärger"): {"base64": ""},
            ("null", "Ärger"): {"real": "Infinity"},
            ("große", "mood"): "ü",
            ("große", "Ärger"): -0.0,
        }
        await _check_tallies(source)


def test_distinct_rows_have_distinct_digests() -> None:
    def digest(*rows: tuple[str | int | None, ...]) -> str:
        tallier = AuxiliaryTallier()
        tallier.add_all(rows)
        assert tallier.tally().rows == len(rows)
        return tallier.tally().digest

    different: list[Callable[[], str]] = [
        digest,
        lambda: digest(("a", "b")),
        lambda: digest(("a",), ("b",)),
        lambda: digest(("ab", "")),
        lambda: digest(("b", "a")),
        lambda: digest((None, "b")),
        lambda: digest(("n", "b")),
        lambda: digest((1,)),
        lambda: digest(("1",)),
        lambda: digest(("i1\n",)),
        lambda: digest((11,)),
        lambda: digest((1, 1)),
        lambda: digest(("a\ns1:b",)),
    ]
    assert len({one() for one in different}) == len(different)
    # The digest is kept on disk, in other databases: it must not change.
    spelled = "3\ns2:ä\nn\ni-5\n".encode()
    assert digest(("ä", None, -5)) == hashlib.sha256(spelled).hexdigest()
