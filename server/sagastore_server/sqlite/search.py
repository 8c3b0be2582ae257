"""Compiles search criteria into one SQLite statement.

Text, tags and metadata become one FTS5 expression of quoted terms: what a caller
typed cannot reach FTS5's syntax, because terms hold letters and digits only, nor
SQL, because the expression is a parameter. Tags and metadata are then checked
exactly (see ``search.facts``).

Two plans give the same rows. If the expression matches few rows, they are looked up
and sorted. If it matches many, walking chronological order and probing the index row
by row (or, for prefixes, the set of all matches) finds a page sooner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sagastore_server.search.facts import OVERFLOW, metadata_facts, tag_fact
from sagastore_server.storage.query import (
    Alternative,
    Criteria,
    Leaf,
    Phrase,
    Prefix,
    Scan,
    TextQuery,
)

PROBE_COST = 7
"""What probing the index for one row costs, in rows looked up and sorted; an estimate
that only decides which of two right plans runs."""

_COLUMNS = (
    "m.id, m.provider, m.role, m.content, m.tags, m.timestamp, m.metadata, m.session_id, "
    "m.created_at, m.revision"
)
_PROBE = "EXISTS (SELECT 1 FROM messages_fts WHERE rowid = m.number AND messages_fts MATCH ?)"
_SET = "m.number IN (SELECT rowid FROM messages_fts WHERE messages_fts MATCH ?)"
"""In place of the probe where there is a prefix: FTS5 merges all words that begin with it
before it looks at a row, which is to be done once, not for each row."""

_ALL_TAGS = "NOT EXISTS (SELECT value FROM json_each(?) EXCEPT SELECT value FROM json_each(m.tags))"


class Statement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


class Compiled(NamedTuple):
    """A search, ready to run by either plan."""

    expression: str | None
    """The FTS5 expression that every match meets; None: the index cannot help."""
    by_order: Statement
    by_index: Statement | None


def is_many(matches: int, rows: int, wanted: int) -> bool:
    """Tell whether walking the order and probing beats sorting all matches.

    Walking finds ``wanted`` rows after about ``wanted * rows / matches`` probes;
    sorting looks up every match.
    """
    return matches * matches > PROBE_COST * wanted * rows


def enough(rows: int, wanted: int) -> int:
    """Return how many matches prove that there are many; none need be counted beyond."""
    return math.isqrt(PROBE_COST * wanted * rows) + 1


def compile_search(criteria: Criteria, scan: Scan) -> Compiled:
    """Return the statements that find what ``criteria`` asks, as far as ``scan`` says."""
    expression = _expression(criteria)
    where, parameters = _conditions(criteria, scan)
    tail = _order(scan)
    exclusions, excluded = _exclusions(criteria.text)
    probe = _probe(criteria.text)
    probes, probed = ([], []) if expression is None else ([probe], [expression])
    # The parts joined here are constants of this module; every value is a parameter.
    walk = Statement(
        f"SELECT {_COLUMNS} FROM messages m{_walk_index(criteria)}"  # noqa: S608
        f"{_where([*where, *probes, *exclusions])}{tail}",
        [*parameters, *probed, *excluded, scan.limit + 1],
    )
    lookup = None
    if expression is not None:
        lookup = Statement(
            f"SELECT {_COLUMNS} FROM messages_fts f CROSS JOIN messages m ON m.number = f.rowid"  # noqa: S608
            f"{_where(['f.messages_fts MATCH ?', *where, *exclusions])}{tail}",
            [expression, *parameters, *excluded, scan.limit + 1],
        )
    return Compiled(expression, walk, lookup)


def _where(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _walk_index(criteria: Criteria) -> str:
    """Name the index to walk: the planner has no statistics, and sorts otherwise."""
    name = "idx_messages_timestamp" if criteria.session_id is None else "idx_messages_session"
    return f" INDEXED BY {name}"


def _order(scan: Scan) -> str:
    direction = "DESC" if scan.newest_first else "ASC"
    return f" ORDER BY m.timestamp {direction}, m.id {direction} LIMIT ?"


def _conditions(criteria: Criteria, scan: Scan) -> tuple[list[str], list[Any]]:
    ahead, back = ("<", ">=") if scan.newest_first else (">", "<=")
    tags = json.dumps(list(criteria.tags), ensure_ascii=False) if criteria.tags else None
    metadata = None if criteria.metadata == "{}" else criteria.metadata
    candidates: list[tuple[str, Sequence[Any] | None]] = [
        ("m.session_id = ?", _one(criteria.session_id)),
        ("m.provider = ?", _one(criteria.provider)),
        ("m.role = ?", _one(criteria.role)),
        ("m.timestamp >= ?", _one(criteria.start)),
        ("m.timestamp < ?", _one(criteria.end)),
        (f"(m.timestamp, m.id) {ahead} (?, ?)", scan.after),
        (f"(m.timestamp, m.id) {back} (?, ?)", scan.until),
        (_ALL_TAGS, _one(tags)),
        ("metadata_contains(m.metadata, ?)", _one(metadata)),
    ]
    chosen = [(condition, values) for condition, values in candidates if values is not None]
    return [condition for condition, _ in chosen], [v for _, values in chosen for v in values]


def _one(value: str | int | None) -> tuple[str | int, ...] | None:
    return None if value is None else (value,)


def _expression(criteria: Criteria) -> str | None:
    """Return what every match has in the index, or None if that cannot be said."""
    parts = [f'facts : "{tag_fact(tag)}"' for tag in dict.fromkeys(criteria.tags)]
    wanted = metadata_facts(criteria.metadata) if criteria.metadata else []
    if wanted and wanted != [OVERFLOW]:
        together = " AND ".join(f'facts : "{fact}"' for fact in wanted)
        parts.append(f'(({together}) OR facts : "{OVERFLOW}")')
    if criteria.text is not None and _all_require(criteria.text):
        parts.append(_text(criteria.text))
    return " AND ".join(parts) or None


def _all_require(text: TextQuery) -> bool:
    return all(option.required for option in text.alternatives)


def _exclusions(text: TextQuery | None) -> tuple[list[str], list[str]]:
    """Return the condition for a text that may match by what it does not hold.

    FTS5 has no "everything but". Alternatives that only exclude hold unless each of
    them finds something, so however many there are, one probe tells.
    """
    if text is None or _all_require(text):
        return [], []
    finding = TextQuery(tuple(option for option in text.alternatives if option.required))
    excluding = [_any(option.excluded) for option in text.alternatives if not option.required]
    parameters = [" AND ".join(excluding)]
    probe = _probe(text)
    if not finding.alternatives:
        return [f"NOT {probe}"], parameters
    return [f"({probe} OR NOT {probe})"], [_text(finding), *parameters]


def _probe(text: TextQuery | None) -> str:
    """Return the condition that a row of ``m`` meets an FTS5 expression of ``text``."""
    leaves = (
        ()
        if text is None
        else (leaf for option in text.alternatives for leaf in (*option.required, *option.excluded))
    )
    return _SET if any(isinstance(leaf, Prefix) for leaf in leaves) else _PROBE


def _text(text: TextQuery) -> str:
    return "(" + " OR ".join(map(_alternative, text.alternatives)) + ")"


def _alternative(option: Alternative) -> str:
    required = "(" + " AND ".join(map(_leaf, option.required)) + ")"
    return f"({required} NOT {_any(option.excluded)})" if option.excluded else required


def _any(leaves: tuple[Leaf, ...]) -> str:
    return "(" + " OR ".join(map(_leaf, leaves)) + ")"


def _leaf(leaf: Leaf) -> str:
    if isinstance(leaf, Phrase):
        return f'stems : "{" ".join(leaf.terms)}"'
    return f'{{stems words}} : "{leaf.text}" *'
