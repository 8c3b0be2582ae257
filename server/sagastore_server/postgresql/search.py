"""Compiler from search criteria to one PostgreSQL statement.

Callers cannot inject syntax: the text becomes ``tsquery`` values of quoted lexemes (see
``postgresql.text_condition``), and every value is a parameter. A phrase is looked up by its words
and then checked against ``terms``.

The planner chooses between a walk in chronological order, which stops when the page is full, and
the index of words. It has statistics for words but not for prefixes: for a prefix without matches
it may walk a million rows. So a search with a prefix (`planner_must_guess`) has up to three steps:

1. Read a block of the first rows in order.
2. If that does not fill the page, read one larger block, sized by the density of the matches.
3. If the density is too low for that, look up all matches with a statement that cannot walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sagastore_server.postgresql.rows import message_from_row
from sagastore_server.postgresql.score_expression import score_expression
from sagastore_server.postgresql.text_condition import compile_text
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.limits import MAX_PAGE_BYTES, WINDOW_BYTES, ranked_page_of
from sagastore_server.storage.model import Position
from sagastore_server.storage.query import (
    Criteria,
    Prefix,
    Ranked,
    RankedPage,
    RankedScan,
    Scan,
    TextQuery,
)
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP

_COLUMNS = (
    "id, provider, role, content, tags::text, timestamp, metadata::text, session_id, "
    "created_at, revision, sequence"
)
_WEIGHT = "(octet_length(m.content) + pg_column_size(m.metadata) / 4 + 1024)::bigint"
"""At most ``Message.size``, so a row that it excludes cannot belong to the page."""

# The planner has no statistics for this expression, and would expect very few matches. From a
# subquery it expects half of the rows.
_HOLDS = """(
    SELECT (m.search || array_to_tsvector(ARRAY(
        SELECT ' ' || p.number FROM unnest({phrases}::text[]) WITH ORDINALITY AS p (terms, number)
        WHERE strpos(m.terms, p.terms) > 0
    ))) @@ {query}::tsquery
)"""


FIRST_BLOCK = 2000
"""Rows of the first block. Reading them takes a few milliseconds, about as long as a page."""

_LARGEST_BLOCK = 50_000
"""Rows of a block above which a lookup of all matches is faster, with a million messages."""

_SPARE = 1.5
"""Factor by which the next block exceeds the size that the measured density requires."""


class SearchStatement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


class _Parameters:
    """Parameters of a statement, with their placeholders."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


def planner_must_guess(criteria: Criteria) -> bool:
    """Return whether the planner has no statistics for the number of matches."""
    # A session has few rows, so every plan is fast.
    if criteria.text is None or criteria.session_id is not None:
        return False
    return any(isinstance(leaf, Prefix) for leaf in criteria.text.wanted)


def next_block(block: int, found: int, wanted: int) -> int:
    """Return the rows of the block after one with ``found`` matches; 0 for a lookup of all."""
    if block != FIRST_BLOCK or not found:
        return 0
    size = int(_SPARE * block * wanted / found)
    return size if size <= _LARGEST_BLOCK else 0


def compile_search(criteria: Criteria, scan: Scan, block: int | None = None) -> SearchStatement:
    """Return the statement that finds the messages of ``criteria`` within ``scan``.

    It yields at least one row more than the page if there is one, and few more: it excludes rows
    that the size of the preceding rows keeps out of the page. The second row is never excluded: the
    first may be larger than a page.

    Args:
        criteria: The conditions.
        scan: Direction, position and limit.
        block: Number of first rows in order to read; 0 for all rows without a walk in order;
            None to let the planner decide.

    """
    parameters = _Parameters()
    direction = "DESC" if scan.newest_first else "ASC"
    found = _in_order(criteria, scan, block, parameters)
    limit = parameters.add(scan.limit + 1)
    # Safe to join: the parts are constants of this module, and every value is a parameter.
    sql = f"""SELECT {_COLUMNS} FROM (
    SELECT *, sum(weight) OVER (
        ORDER BY timestamp {direction}, sequence {direction} ROWS UNBOUNDED PRECEDING
    ) - weight AS before,
        row_number() OVER (ORDER BY timestamp {direction}, sequence {direction}) AS place
    FROM (
        SELECT m.*, {_WEIGHT} AS weight FROM {found} LIMIT {limit}::bigint
    ) AS found
) AS weighed
WHERE place <= 2 OR before <= {MAX_PAGE_BYTES}
ORDER BY timestamp {direction}, sequence {direction}"""  # noqa: S608
    return SearchStatement(sql, parameters.values)


def compile_ranked(
    criteria: Criteria, text: TextQuery, scan: RankedScan, block: int | None = None
) -> SearchStatement:
    """Return the statement that ranks a window; see ``StorageBackend.search_ranked``.

    Each row has the columns of a message, its score, the positions of the first and the last match
    of the window, the number of its matches, and whether matches follow it. The rows are those of
    the page and at least one more if there is one, as those of ``compile_search`` are. Only they
    are read as a whole: of a candidate the search columns are read. Without ``scan.bottom`` a page
    without rows is an empty window.

    Args:
        criteria: The conditions.
        text: That of ``criteria``.
        scan: The window and the page.
        block: As for ``compile_search``.

    """
    parameters = _Parameters()
    chronological = Scan(True, scan.window, scan.above, scan.bottom)
    found = _in_order(criteria, chronological, block, parameters)
    score = score_expression(text, "w", parameters.add)
    prefixed = any(isinstance(leaf, Prefix) for leaf in text.wanted)
    searched = "m.terms, m.search" if prefixed else "m.terms"
    most = "ALL" if scan.bottom is not None else str(scan.window + 1)
    inside = (
        "true"
        if scan.bottom is not None
        else f"place = 1 OR place <= {scan.window} AND bytes <= {WINDOW_BYTES}"
    )
    following = ""
    if scan.after is not None:
        value, position = scan.after
        rank = [parameters.add(one) for one in (value, *_clamped(position))]
        following = (
            " WHERE (r.score, r.timestamp, r.sequence) <"
            f" ({rank[0]}::float8, {rank[1]}::timestamptz, {rank[2]}::bigint)"
        )
    limit = parameters.add(scan.limit + 1)
    # Safe to join, as above.
    sql = f"""WITH candidates AS MATERIALIZED (
    SELECT m.id, m.timestamp, m.sequence, {searched}, octet_length(m.content) AS size
    FROM {found} LIMIT {most}
), placed AS (
    SELECT *, row_number() OVER latest AS place, sum(size) OVER latest AS bytes FROM candidates
    WINDOW latest AS (ORDER BY timestamp DESC, sequence DESC ROWS UNBOUNDED PRECEDING)
), ranked AS MATERIALIZED (
    SELECT w.id, w.timestamp, w.sequence, w.place, {score} AS score FROM placed AS w WHERE {inside}
), page AS MATERIALIZED (
    SELECT r.id, r.score, r.timestamp, r.sequence FROM ranked AS r{following}
    ORDER BY r.score DESC, r.timestamp DESC, r.sequence DESC LIMIT {limit}::bigint
), top AS (
    SELECT timestamp AS top_time, sequence AS top_sequence FROM ranked ORDER BY place LIMIT 1
), bottom AS (
    SELECT timestamp AS bottom_time, sequence AS bottom_sequence, place AS matches,
        place < (SELECT count(*) FROM candidates) AS below
    FROM ranked ORDER BY place DESC LIMIT 1
)
SELECT {_COLUMNS}, score, top_time, top_sequence, bottom_time, bottom_sequence,
    matches, below FROM (
    SELECT *, sum(weight) OVER best - weight AS before, row_number() OVER best AS place FROM (
        SELECT m.*, p.score, top.*, bottom.*, {_WEIGHT} AS weight
        FROM page AS p JOIN messages AS m ON m.id = p.id CROSS JOIN top CROSS JOIN bottom
    ) AS found
    WINDOW best AS (ORDER BY score DESC, timestamp DESC, sequence DESC ROWS UNBOUNDED PRECEDING)
) AS weighed
WHERE place <= 2 OR before <= {MAX_PAGE_BYTES}
ORDER BY score DESC, timestamp DESC, sequence DESC"""  # noqa: S608
    return SearchStatement(sql, parameters.values)


def ranked_page(rows: Sequence[Any], scan: RankedScan) -> tuple[RankedPage, int]:
    """Return the page of the rows of ``compile_ranked``, and the number of matches of the window.

    Without rows the number is 0.
    """
    ranked = (Ranked(row[11], message_from_row(row)) for row in rows)
    found, more = ranked_page_of(ranked, scan.limit)
    if not rows:
        return RankedPage([], False, None, scan.bottom, scan.bottom is not None), 0
    top_time, top, bottom_time, bottom, matches, below = rows[0][12:18]
    last = scan.bottom or Position(bottom_time, bottom)
    below = below or scan.bottom is not None
    return RankedPage(found, more, Position(top_time, top), last, below), matches


def _in_order(criteria: Criteria, scan: Scan, block: int | None, parameters: _Parameters) -> str:
    """Return the source of the matches ``m``, with conditions and order."""
    conditions = _text(criteria.text, parameters)
    place = _place(criteria, scan, parameters)
    conditions += _further(criteria, parameters)
    direction = "DESC" if scan.newest_first else "ASC"
    source = "messages"
    if block:
        source = (
            f"(SELECT * FROM messages AS m{_where(place)} "  # noqa: S608
            f"ORDER BY m.timestamp {direction}, m.sequence {direction} LIMIT {block})"
        )
    else:
        conditions += place
    # The expression prevents a walk: no index has its order.
    moment = "(m.timestamp + interval '0')" if block == 0 else "m.timestamp"
    return (
        f"{source} AS m{_where(conditions)} ORDER BY {moment} {direction}, m.sequence {direction}"
    )


def _where(conditions: Sequence[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _place(criteria: Criteria, scan: Scan, parameters: _Parameters) -> list[str]:
    """Return the conditions on session, time and position."""
    ahead, back = ("<", ">=") if scan.newest_first else (">", "<=")
    conditions = _compared(
        parameters,
        ("session_id", "=", criteria.session_id, "text"),
        ("timestamp", ">=", criteria.start, "timestamptz"),
        ("timestamp", "<", criteria.end, "timestamptz"),
    )
    for operator, position in ((ahead, scan.after), (back, scan.until)):
        if position is not None:
            moment, sequence = map(parameters.add, _clamped(position))
            conditions.append(
                f"(m.timestamp, m.sequence) {operator} ({moment}::timestamptz, {sequence}::bigint)"
            )
    return conditions


def _further(criteria: Criteria, parameters: _Parameters) -> list[str]:
    """Return the conditions on the fields of a message other than its text."""
    return _compared(
        parameters,
        ("provider", "=", criteria.provider, "text"),
        ("role", "=", criteria.role, "text"),
        ("tags", "@>", _tags(criteria.tags), "jsonb"),
        ("metadata", "@>", _metadata(criteria.metadata), "jsonb"),
    )


def _compared(
    parameters: _Parameters, *wanted: tuple[str, str, str | int | None, str]
) -> list[str]:
    return [
        f"m.{column} {operator} {parameters.add(value)}::{kind}"
        for column, operator, value, kind in wanted
        if value is not None
    ]


def _tags(tags: tuple[str, ...]) -> str | None:
    return canonical_tags(tags) if tags else None


def _metadata(metadata: str | None) -> str | None:
    return None if metadata == "{}" else metadata


def _clamped(position: Position) -> Position:
    """Return a position that PostgreSQL can represent, with the same order to every message."""
    moment = min(max(position.timestamp, MIN_TIMESTAMP - 1), MAX_TIMESTAMP + 1)
    return Position(moment, position.sequence)


def _text(text: TextQuery | None, parameters: _Parameters) -> list[str]:
    """Return the conditions for a text."""
    if text is None or text.condition is None:
        return []
    compiled = compile_text(text.condition)
    conditions: list[str] = []
    if compiled.necessary is not None:
        conditions.append(f"m.search @@ {parameters.add(compiled.necessary)}::tsquery")
    for phrase, present in compiled.checks:
        # Not "= 0", from which the planner expects very few rows.
        compared = "> 0" if present else "< 1"
        conditions.append(f"strpos(m.terms, {parameters.add(phrase)}::text) {compared}")
    if compiled.exact is not None:
        query, phrases = map(parameters.add, compiled.exact)
        conditions.append(_HOLDS.format(phrases=phrases, query=query))
    return conditions
