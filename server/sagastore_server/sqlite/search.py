"""Compiles search criteria into one SQLite statement.

Text, tags and metadata become one FTS5 expression of quoted terms: what a caller
typed cannot reach FTS5's syntax, because terms hold letters and digits only, nor
SQL, because the expression is a parameter. Tags and metadata are then checked
exactly (see ``search.facts``).

Two plans give the same rows. If the expression matches few rows, they are looked up
and sorted. If it matches many, a page is among the first rows in chronological order: a
block of these is taken, held against the matches in the stretch of row numbers that it
spans, and read in order until the page is full. Rows are numbered as they come, which is
about the order of their times, so that stretch is short; if it is not, the block is found as
surely, and in more time. Should a block hold too few matches, because these lie elsewhere, a
larger one is taken, and in the end all matches are looked up. Asking the index row by row
instead takes 0.2 to 0.5 ms a row at a million messages, a hundred times as long.
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

_FIRST = 400
"""Rows of the first block: it may hold a page, and shows how dense the matches are."""

_SPARE = 1.5
"""How much larger the next block is than one that would do, were they as dense everywhere."""

_GROWTH = (2, 64)
"""How much larger than the one before it is at least and at most."""

_COLUMNS = (
    "m.id, m.provider, m.role, m.content, m.tags, m.timestamp, m.metadata, m.session_id, "
    "m.created_at, m.revision"
)
_PROBE = "EXISTS (SELECT 1 FROM messages_fts WHERE rowid = m.number AND messages_fts MATCH ?)"
_SET = "m.number IN (SELECT rowid FROM messages_fts WHERE messages_fts MATCH ?)"
"""In place of the probe where there is a prefix: FTS5 merges all words that begin with it
before it looks at a row, which is to be done once, not for each row."""

_BLOCK = (
    "WITH counted AS MATERIALIZED (SELECT count(*) = ? AS enough FROM"
    " (SELECT 1 FROM messages_fts WHERE messages_fts MATCH ? LIMIT ?)),"
    " block AS MATERIALIZED"
    " (SELECT m.number, m.timestamp, m.id FROM messages m{index}{inside}{by_time}"
    " LIMIT iif((SELECT enough FROM counted), ?, 0)),"
    " span AS MATERIALIZED (SELECT iif((SELECT enough FROM counted), count(*), -1) AS size,"
    " min(number) AS lowest, max(number) AS highest FROM block) "
    "SELECT m.*, span.size FROM span LEFT JOIN ({page}) AS m ON true{by_time}"
)
"""The outer join tells how many rows the block has where it holds no match, too."""

_MATCHES = (
    "number IN (SELECT rowid FROM messages_fts WHERE messages_fts MATCH ?"
    " AND rowid BETWEEN (SELECT lowest FROM span) AND (SELECT highest FROM span))"
)

_PAGE = (
    "SELECT {columns} FROM messages m"
    " WHERE m.number IN (SELECT number FROM block m WHERE m.{matches}{order})"
)
"""The page of a block where the index decides alone: no row is read beyond it."""

_CHECKED_PAGE = (
    "SELECT {columns} FROM messages m{index} WHERE {session}"
    "(m.timestamp, m.id) >= (SELECT +timestamp, +id FROM block ORDER BY timestamp, id LIMIT 1)"
    " AND (m.timestamp, m.id) <="
    " (SELECT +timestamp, +id FROM block ORDER BY timestamp DESC, id DESC LIMIT 1)"
    " AND m.{matches}{further}{order}"
)
"""The page of a block where rows are to be read and checked: walks the block a second time, and
no further than until the page is full. A plus keeps the affinity of a column out of the
comparison, with which the index would serve for the time alone."""

_ALL_TAGS = "NOT EXISTS (SELECT value FROM json_each(?) EXCEPT SELECT value FROM json_each(m.tags))"


class SearchStatement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


_ROWS, _LEAST = object(), object()
"""Stand for the number of rows in a block, and for that of the matches that there must be."""


class Compiled(NamedTuple):
    """A search, ready to run by each plan."""

    expression: str | None
    """The FTS5 expression that every match meets; None: the index cannot help."""
    whole: SearchStatement
    """Looks up and sorts all matches, or, where the index cannot help, walks the whole order."""
    block: SearchStatement | None
    """Looks at the first rows in order; see ``of_block``."""
    has_prefix: bool = False
    """Whether the expression has a prefix: FTS5 merges all words that begin with it, each time."""

    def of_block(self, rows: int, least: int = 0) -> SearchStatement:
        """Return what looks at the first ``rows`` in order, where the index helps.

        Behind the columns of a message each row has how many rows the block has. There is one
        row at least: without an id if the block holds no match. Matches are counted up to
        ``least``; if there are fewer, nothing is looked at, and the number of rows is -1.
        """
        assert self.block is not None  # noqa: S101 - whoever asks has looked at the expression
        known = {_ROWS: rows, _LEAST: least}
        parameters = [
            known[one] if one is _ROWS or one is _LEAST else one for one in self.block.parameters
        ]
        return SearchStatement(self.block.sql, parameters)


def some(wanted: int) -> int:
    """Return how many matches take as long to be looked up as the first block, or longer."""
    return max(_FIRST, wanted + 1)


def enough(rows: int, wanted: int) -> int:
    """Return how many matches are many: so many that further blocks are better than a lookup.

    Looking up and sorting a match takes about five microseconds, a row of a block two, at a
    million messages. ``wanted * rows / matches`` rows hold a page, if the matches are as dense
    everywhere.
    """
    return math.isqrt(wanted * rows) + 1


def first_block(rows: int) -> int:
    """Return how large the first block is; 0: a lookup is better."""
    return _at_most_a_quarter(_FIRST, rows)


def next_block(block: int, found: int, rows: int, wanted: int) -> int:
    """Return how large the one after a block that held ``found`` is; 0: a lookup is better."""
    least, most = _GROWTH
    size = int(_SPARE * block * wanted / found) if found else most * block
    return _at_most_a_quarter(min(max(size, least * block), most * block), rows)


def _at_most_a_quarter(block: int, rows: int) -> int:
    return block if block <= rows // 4 else 0


def compile_search(criteria: Criteria, scan: Scan) -> Compiled:
    """Return the statements that find what ``criteria`` asks, as far as ``scan`` says."""
    expression = _expression(criteria)
    place, further = _place(criteria, scan), _further(criteria)
    where, parameters = [*place.parts, *further.parts], [*place.values, *further.values]
    order, index = _order(scan), _walk_index(criteria)
    exclusions, excluded = _exclusions(criteria.text)
    # The parts joined here are constants of this module; every value is a parameter.
    if expression is None:
        walk = SearchStatement(
            f"SELECT {_COLUMNS} FROM messages m{index}"  # noqa: S608
            f"{_where([*where, *exclusions])}{order}",
            [*parameters, *excluded, scan.limit + 1],
        )
        return Compiled(None, walk, None)
    lookup = SearchStatement(
        f"SELECT {_COLUMNS} FROM messages_fts f CROSS JOIN messages m ON m.number = f.rowid"  # noqa: S608
        f"{_where(['f.messages_fts MATCH ?', *where, *exclusions])}{order}",
        [expression, *parameters, *excluded, scan.limit + 1],
    )
    block = _block(criteria, scan, expression)
    # A text that may match by what it does not hold is no part of the expression.
    has_prefix = not exclusions and _has_prefix(criteria.text)
    return Compiled(expression, lookup, block, has_prefix)


def _block(criteria: Criteria, scan: Scan, expression: str) -> SearchStatement:
    place, further = _place(criteria, scan), _further(criteria)
    exclusions, excluded = _exclusions(criteria.text)
    checks = [*further.parts, *exclusions]
    session = [criteria.session_id] if checks and criteria.session_id is not None else []
    order, index = _order(scan), _walk_index(criteria)
    page = (_CHECKED_PAGE if checks else _PAGE).format(
        columns=_COLUMNS,
        index=index,
        session="m.session_id = ? AND " if session else "",
        matches=_MATCHES,
        further="".join(f" AND {part}" for part in checks),
        order=order,
    )
    return SearchStatement(
        _BLOCK.format(
            index=index,
            inside=_where(place.parts),
            order=order,
            page=page,
            by_time=_by_time(scan),
        ),
        [
            *(_LEAST, expression, _LEAST, *place.values, _ROWS),
            *(*session, expression, *further.values, *excluded, scan.limit + 1),
        ],
    )


def _where(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _walk_index(criteria: Criteria) -> str:
    """Name the index to walk: the planner has no statistics, and sorts otherwise."""
    name = "idx_messages_timestamp" if criteria.session_id is None else "idx_messages_session"
    return f" INDEXED BY {name}"


def _order(scan: Scan) -> str:
    return f"{_by_time(scan)} LIMIT ?"


def _by_time(scan: Scan) -> str:
    direction = "DESC" if scan.newest_first else "ASC"
    return f" ORDER BY m.timestamp {direction}, m.id {direction}"


class _Conditions(NamedTuple):
    parts: list[str]
    values: list[Any]


def _place(criteria: Criteria, scan: Scan) -> _Conditions:
    """Return the conditions that the index which is walked decides."""
    ahead, back = ("<", ">=") if scan.newest_first else (">", "<=")
    return _conditions(
        ("m.session_id = ?", _one(criteria.session_id)),
        ("m.timestamp >= ?", _one(criteria.start)),
        ("m.timestamp < ?", _one(criteria.end)),
        (f"(m.timestamp, m.id) {ahead} (?, ?)", scan.after),
        (f"(m.timestamp, m.id) {back} (?, ?)", scan.until),
    )


def _further(criteria: Criteria) -> _Conditions:
    """Return the conditions for which a row has to be read."""
    tags = json.dumps(list(criteria.tags), ensure_ascii=False) if criteria.tags else None
    metadata = None if criteria.metadata == "{}" else criteria.metadata
    return _conditions(
        ("m.provider = ?", _one(criteria.provider)),
        ("m.role = ?", _one(criteria.role)),
        (_ALL_TAGS, _one(tags)),
        ("metadata_contains(m.metadata, ?)", _one(metadata)),
    )


def _conditions(*candidates: tuple[str, Sequence[Any] | None]) -> _Conditions:
    chosen = [(part, values) for part, values in candidates if values is not None]
    return _Conditions(
        [part for part, _ in chosen], [value for _, values in chosen for value in values]
    )


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
    return _SET if _has_prefix(text) else _PROBE


def _has_prefix(text: TextQuery | None) -> bool:
    return text is not None and any(
        isinstance(leaf, Prefix)
        for option in text.alternatives
        for leaf in (*option.required, *option.excluded)
    )


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
