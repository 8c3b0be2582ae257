"""Compiler from search criteria to SQLite statements, and the sizes of the blocks they read.

A search is in one of three states. `SQLiteStorage._search` moves from one to the next, and each
gives the same rows:

1. Walk. The criteria have no FTS5 expression (`Compiled.expression` is None): read the rows in
   chronological order by an index and check each.
2. Block. The expression matches many rows, so a page is probably among the first rows in
   chronological order. Take a block of these rows, intersect it with the matches in the range of
   row numbers that it spans, and read in order until the page is full. If the block has too few
   matches, take a larger one (`next_block`).
3. Lookup. The expression matches few rows, or a block would have more than a quarter of all rows:
   look up all matches and sort them.

Row numbers (sequences) grow with the time of insertion, which is about the chronological order, so
the range of a block is short. If it is long, the result is the same and takes more time. Probing
the index row by row instead takes 0.2 to 0.5 ms per row with a million messages, a hundred times as
long.

Callers cannot inject syntax. Text, tags and metadata become one FTS5 expression of quoted terms
(see ``sqlite.text_expression``), which is a parameter of the SQL. The facts of tags and metadata
are hashes, so the rows are also checked exactly (see ``search.facts``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sagastore_server.search.facts import OVERFLOW, metadata_facts, tag_fact
from sagastore_server.sqlite.text_expression import TextExpression, compile_text
from sagastore_server.storage.query import Criteria, Scan

_FIRST = 400
"""Rows of the first block. It may fill the page, and it measures the density of the matches."""

_SPARE = 1.5
"""Factor by which the next block exceeds the size that the measured density requires."""

_GROWTH = (2, 64)
"""Least and greatest factor between a block and the next."""

_COLUMNS = (
    "m.id, m.provider, m.role, m.content, m.tags, m.timestamp, m.metadata, m.session_id, "
    "m.created_at, m.revision, m.number"
)
_PROBE = "EXISTS (SELECT 1 FROM messages_fts WHERE rowid = m.number AND messages_fts MATCH ?)"
_SET = "m.number IN ({matching})"
"""Replaces the probe if there is a prefix, or if the expression is long. FTS5 parses the expression
and merges all words with the prefix before it reads a row; this way it does so once instead of once
per row."""

_LONG = 4000
"""Characters of an expression whose parsing takes as long as a probe: 0.2 ms."""

_MATCHING = "SELECT rowid FROM messages_fts WHERE messages_fts MATCH ?"
"""The numbers of the messages that match an expression."""

_MATCHING_BOTH = (
    "WITH wanted (expression) AS (SELECT ?)"
    " SELECT rowid FROM messages_fts WHERE messages_fts MATCH (SELECT expression FROM wanted){span}"
    " UNION ALL SELECT rowid FROM messages_fts_former"
    " WHERE messages_fts_former MATCH (SELECT expression FROM wanted)"
    " AND rowid BETWEEN {first} AND {last}"
    " AND rowid NOT IN (SELECT number FROM reanalysed)"
)
"""The same while messages are pending in the former index (``reanalysis``)."""

_FIRST_PENDING = "(SELECT value + 1 FROM store_state WHERE name = 'reanalysis_cursor')"
_LAST_PENDING = "(SELECT value FROM store_state WHERE name = 'reanalysis_upto')"

_BLOCK = (
    "WITH counted AS MATERIALIZED (SELECT count(*) = ? AS enough FROM"
    " (SELECT 1 FROM ({matching}) LIMIT ?)),"
    " block AS MATERIALIZED"
    " (SELECT m.number, m.timestamp FROM messages m{index}{inside}{by_time}"
    " LIMIT iif((SELECT enough FROM counted), ?, 0)),"
    " span AS MATERIALIZED (SELECT iif((SELECT enough FROM counted), count(*), -1) AS size,"
    " min(number) AS lowest, max(number) AS highest FROM block) "
    "SELECT m.*, span.size FROM span LEFT JOIN ({page}) AS m ON true{by_time}"
)
"""The outer join returns the size of the block even if the block has no match."""

_LOWEST, _HIGHEST = "(SELECT lowest FROM span)", "(SELECT highest FROM span)"
_IN_SPAN = f" AND rowid BETWEEN {_LOWEST} AND {_HIGHEST}"

_PAGE = (
    "SELECT {columns} FROM messages m"
    " WHERE m.number IN (SELECT number FROM block m WHERE m.{matches}{order})"
)
"""The page of a block if the index decides alone: no row outside the page is read."""

_CHECKED_PAGE = (
    "SELECT {columns} FROM messages m{index} WHERE {session}"
    "(m.timestamp, m.number) >="
    " (SELECT +timestamp, +number COLLATE BINARY FROM block ORDER BY timestamp, number LIMIT 1)"
    " AND (m.timestamp, m.number) <="
    " (SELECT +timestamp, +number COLLATE BINARY FROM block"
    " ORDER BY timestamp DESC, number DESC LIMIT 1)"
    " AND m.{matches}{further}{order}"
)
"""The page of a block if rows must be read and checked. It walks the block a second time and stops
when the page is full. The unary plus removes the affinity of a column from the comparison; with
the affinity, or without COLLATE BINARY (see schema/0004_order.sql), SQLite would use the index for
the timestamp only."""

_ALL_TAGS = "NOT EXISTS (SELECT value FROM json_each(?) EXCEPT SELECT value FROM json_each(m.tags))"


class SearchStatement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


_ROWS, _LEAST = object(), object()
"""Placeholders for the rows of a block and for the matches that it needs."""


class Compiled(NamedTuple):
    """The statements of one search, for each state."""

    expression: str | None
    """The FTS5 expression that every match meets; None if the index cannot help."""
    whole: SearchStatement
    """Looks up and sorts all matches, or walks all rows if the index cannot help."""
    block: SearchStatement | None
    """Reads the first rows in order; see ``of_block``."""
    has_prefix: bool = False
    """Whether the expression has a prefix: FTS5 then merges all words with it for each query."""

    def of_block(self, rows: int, least: int = 0) -> SearchStatement:
        """Return the statement that reads a block of the first ``rows`` in order.

        Each row of the result has the columns of a message and then the size of the block. There
        is at least one row; its id is NULL if the block has no match. The statement first counts
        the matches up to ``least``: if there are fewer, it reads no block and the size is -1.
        """
        assert self.block is not None  # noqa: S101 - it is set if there is an expression
        known = {_ROWS: rows, _LEAST: least}
        parameters = [
            known[one] if one is _ROWS or one is _LEAST else one for one in self.block.parameters
        ]
        return SearchStatement(self.block.sql, parameters)


def some(wanted: int) -> int:
    """Return the matches from which a lookup takes at least as long as the first block."""
    return max(_FIRST, wanted + 1)


def enough(rows: int, wanted: int) -> int:
    """Return the matches from which further blocks are faster than a lookup.

    With a million messages, looking up and sorting a match takes about 5 µs and a row of a block
    2 µs. If the density is the same everywhere, ``wanted * rows / matches`` rows fill a page.
    """
    return math.isqrt(wanted * rows) + 1


def first_block(rows: int) -> int:
    """Return the rows of the first block; 0 if a lookup is faster."""
    return _at_most_a_quarter(_FIRST, rows)


def next_block(block: int, found: int, rows: int, wanted: int) -> int:
    """Return the rows of the block after one with ``found`` matches; 0 if a lookup is faster."""
    least, most = _GROWTH
    size = int(_SPARE * block * wanted / found) if found else most * block
    return _at_most_a_quarter(min(max(size, least * block), most * block), rows)


def _at_most_a_quarter(block: int, rows: int) -> int:
    return block if block <= rows // 4 else 0


def compile_search(criteria: Criteria, scan: Scan, *, both: bool = False) -> Compiled:
    """Return the statements that find the messages of ``criteria`` within ``scan``.

    ``both``: messages may be pending, so the former index is read, too.
    """
    text = _text(criteria)
    expression = _expression(criteria, text)
    place, further = _place(criteria, scan), _further(criteria)
    where, parameters = [*place.parts, *further.parts], [*place.values, *further.values]
    order, index = _order(scan), _walk_index(criteria)
    exclusions, excluded = exclusion = _exclusion(text, both)
    # Safe to join: the parts are constants of this module, and every value is a parameter.
    if expression is None:
        walk = SearchStatement(
            f"SELECT {_COLUMNS} FROM messages m{index}"  # noqa: S608
            f"{_where([*where, *exclusions])}{order}",
            [*parameters, *excluded, scan.limit + 1],
        )
        return Compiled(None, walk, None)
    lookup = SearchStatement(
        f"SELECT {_COLUMNS} FROM ({_matching(both)}) f CROSS JOIN messages m ON m.number = f.rowid"  # noqa: S608
        f"{_where([*where, *exclusions])}{order}",
        [expression, *parameters, *excluded, scan.limit + 1],
    )
    block = _block(criteria, scan, expression, exclusion, both)
    # A negative text is not part of the expression.
    has_prefix = text is not None and text.has_prefix and not text.negative
    return Compiled(expression, lookup, block, has_prefix)


def _block(
    criteria: Criteria, scan: Scan, expression: str, exclusion: _Conditions, both: bool
) -> SearchStatement:
    place, further = _place(criteria, scan), _further(criteria)
    checks = [*further.parts, *exclusion.parts]
    session = [criteria.session_id] if checks and criteria.session_id is not None else []
    order, index = _order(scan), _walk_index(criteria)
    page = (_CHECKED_PAGE if checks else _PAGE).format(
        columns=_COLUMNS,
        index=index,
        session="m.session_id = ? AND " if session else "",
        matches=f"number IN ({_matching(both, in_span=True)})",
        further="".join(f" AND {part}" for part in checks),
        order=order,
    )
    return SearchStatement(
        _BLOCK.format(
            matching=_matching(both),
            index=index,
            inside=_where(place.parts),
            order=order,
            page=page,
            by_time=_by_time(scan),
        ),
        [
            *(_LEAST, expression, _LEAST, *place.values, _ROWS),
            *(*session, expression, *further.values, *exclusion.values, scan.limit + 1),
        ],
    )


def _matching(both: bool, *, in_span: bool = False) -> str:
    """Return the statement for the numbers of the matching messages, perhaps of a block."""
    span = _IN_SPAN if in_span else ""
    if not both:
        return _MATCHING + span
    # One bound on each side: FTS5 uses no more.
    first = f"max({_LOWEST}, {_FIRST_PENDING})" if in_span else _FIRST_PENDING
    last = f"min({_HIGHEST}, {_LAST_PENDING})" if in_span else _LAST_PENDING
    return _MATCHING_BOTH.format(span=span, first=first, last=last)


def _where(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _walk_index(criteria: Criteria) -> str:
    """Return the index to walk. Without statistics the planner would sort instead."""
    name = "idx_messages_timestamp" if criteria.session_id is None else "idx_messages_session"
    return f" INDEXED BY {name}"


def _order(scan: Scan) -> str:
    return f"{_by_time(scan)} LIMIT ?"


def _by_time(scan: Scan) -> str:
    direction = "DESC" if scan.newest_first else "ASC"
    return f" ORDER BY m.timestamp {direction}, m.number {direction}"


class _Conditions(NamedTuple):
    parts: list[str]
    values: list[Any]


def _place(criteria: Criteria, scan: Scan) -> _Conditions:
    """Return the conditions that the walked index decides."""
    ahead, back = ("<", ">=") if scan.newest_first else (">", "<=")
    return _conditions(
        ("m.session_id = ?", _one(criteria.session_id)),
        ("m.timestamp >= ?", _one(criteria.start)),
        ("m.timestamp < ?", _one(criteria.end)),
        (f"(m.timestamp, m.number) {ahead} (?, ? COLLATE BINARY)", scan.after),
        (f"(m.timestamp, m.number) {back} (?, ? COLLATE BINARY)", scan.until),
    )


def _further(criteria: Criteria) -> _Conditions:
    """Return the conditions that need the row."""
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


def _expression(criteria: Criteria, text: TextExpression | None) -> str | None:
    """Return the FTS5 expression that every match meets, or None if there is none."""
    parts = [f'facts : "{tag_fact(tag)}"' for tag in dict.fromkeys(criteria.tags)]
    wanted = metadata_facts(criteria.metadata) if criteria.metadata else []
    if wanted and wanted != [OVERFLOW]:
        together = " AND ".join(f'facts : "{fact}"' for fact in wanted)
        parts.append(f'(({together}) OR facts : "{OVERFLOW}")')
    if text is not None and not text.negative:
        parts.append(text.expression)
    return " AND ".join(parts) or None


def _text(criteria: Criteria) -> TextExpression | None:
    if criteria.text is None or criteria.text.condition is None:
        return None
    return compile_text(criteria.text.condition)


def _exclusion(text: TextExpression | None, both: bool) -> _Conditions:
    """Return the condition for a text that messages with none of its terms match.

    FTS5 cannot look these messages up, so each row is checked.
    """
    if text is None or not text.negative:
        return _Conditions([], [])
    once = both or text.has_prefix or len(text.expression) > _LONG
    condition = _SET.format(matching=_matching(both)) if once else _PROBE
    return _Conditions([f"NOT {condition}"], [text.expression])
