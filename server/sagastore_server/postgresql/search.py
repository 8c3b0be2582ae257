"""Compiler from search criteria to one PostgreSQL statement.

Callers cannot inject syntax. Words and prefixes become one ``tsquery`` of quoted lexemes; terms
contain letters and digits only, and every value is a parameter. A phrase is looked up by its
words and then checked against ``terms``, because a ``tsvector`` has no positions above 16,383 and
at most 256 positions per lexeme.

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

from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.model import Position
from sagastore_server.storage.query import (
    Alternative,
    Criteria,
    Leaf,
    Phrase,
    Prefix,
    Scan,
    TextQuery,
)
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP

_COLUMNS = (
    "id, provider, role, content, tags::text, timestamp, metadata::text, session_id, "
    "created_at, revision"
)
_WEIGHT = "(octet_length(m.content) + pg_column_size(m.metadata) / 4 + 1024)::bigint"
"""At most ``Message.size``, so a row that it excludes cannot belong to the page."""

_OPTIONS = """WITH options AS MATERIALIZED (
    SELECT query::tsquery, string_to_array(wanted, '|') AS wanted,
        string_to_array(unwanted, '|') AS unwanted
    FROM unnest({}::text[], {}::text[], {}::text[]) AS option (query, wanted, unwanted)
)
"""

# A subquery instead of a join, so that the planner cannot start with it.
_HOLDS = """(
    SELECT true FROM options AS o
    WHERE (o.query IS NULL OR m.search @@ o.query)
        AND NOT EXISTS (SELECT FROM unnest(o.wanted) AS p WHERE strpos(m.terms, p) = 0)
        AND NOT EXISTS (SELECT FROM unnest(o.unwanted) AS p WHERE strpos(m.terms, p) > 0)
    LIMIT 1
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
    leaves = (leaf for option in criteria.text.alternatives for leaf in option.required)
    return any(isinstance(leaf, Prefix) for leaf in leaves)


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
    options, conditions = _text(criteria.text, parameters)
    place = _place(criteria, scan, parameters)
    conditions += _further(criteria, parameters)
    direction = "DESC" if scan.newest_first else "ASC"
    source = "messages"
    if block:
        source = (
            f"(SELECT * FROM messages AS m{_where(place)} "  # noqa: S608
            f"ORDER BY m.timestamp {direction}, m.id {direction} LIMIT {block})"
        )
    else:
        conditions += place
    # The expression prevents a walk: no index has its order.
    moment = "(m.timestamp + interval '0')" if block == 0 else "m.timestamp"
    where = _where(conditions)
    limit = parameters.add(scan.limit + 1)
    # Safe to join: the parts are constants of this module, and every value is a parameter.
    sql = f"""{options}SELECT {_COLUMNS} FROM (
    SELECT *, sum(weight) OVER (
        ORDER BY timestamp {direction}, id {direction} ROWS UNBOUNDED PRECEDING
    ) - weight AS before,
        row_number() OVER (ORDER BY timestamp {direction}, id {direction}) AS place
    FROM (
        SELECT m.*, {_WEIGHT} AS weight FROM {source} AS m{where}
        ORDER BY {moment} {direction}, m.id {direction} LIMIT {limit}::bigint
    ) AS found
) AS weighed
WHERE place <= 2 OR before <= {MAX_PAGE_BYTES} ORDER BY timestamp {direction}, id {direction}"""  # noqa: S608
    return SearchStatement(sql, parameters.values)


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
            moment, message_id = map(parameters.add, _clamped(position))
            conditions.append(
                f"(m.timestamp, m.id) {operator} ({moment}::timestamptz, {message_id}::text)"
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
    return Position(moment, position.id)


def _text(text: TextQuery | None, parameters: _Parameters) -> tuple[str, list[str]]:
    """Return the common table expression and the conditions for a text."""
    if text is None:
        return "", []
    queries = [tsquery(option) for option in text.alternatives]
    phrased = any(map(_phrases, (leaf for o in text.alternatives for leaf in (*o[0], *o[1]))))
    conditions: list[str] = []
    if None not in queries:
        found = _join("|", [query for query in queries if query is not None])
        conditions.append(f"m.search @@ {parameters.add(found)}::tsquery")
    elif not phrased:
        return "", []
    if not phrased:
        return "", conditions
    options = _OPTIONS.format(
        parameters.add(queries),
        parameters.add([_checked(option.required) for option in text.alternatives]),
        parameters.add([_checked(option.excluded) for option in text.alternatives]),
    )
    return options, [*conditions, _HOLDS]


def tsquery(option: Alternative) -> str | None:
    """Return the ``tsquery`` that every match meets in ``search``; None if there is none."""
    parts = [_leaf(leaf) for leaf in option.required]
    excluded = [_leaf(leaf) for leaf in option.excluded if not _phrases(leaf)]
    if excluded:
        parts.append(f"!{_join('|', excluded)}")
    return _join("&", parts) if parts else None


def _leaf(leaf: Leaf) -> str:
    if isinstance(leaf, Prefix):
        return _prefix(leaf.text)
    return _join("&", [f"'{term}'" for term in dict.fromkeys(leaf.terms)])


def _prefix(text: str) -> str:
    # Only ASCII words are stemmed, so only their unstemmed form is indexed separately.
    return f"('{text}':* | '={text}':*)" if text.isascii() else f"'{text}':*"


def _phrases(leaf: Leaf) -> bool:
    """Return whether a leaf must be checked against ``terms``."""
    return isinstance(leaf, Phrase) and len(leaf.terms) > 1


def _checked(leaves: tuple[Leaf, ...]) -> str | None:
    phrases = (leaf for leaf in leaves if isinstance(leaf, Phrase) and len(leaf.terms) > 1)
    return "|".join(f" {' '.join(phrase.terms)} " for phrase in phrases) or None


def _join(operator: str, parts: Sequence[str]) -> str:
    """Join parts as a balanced tree, because PostgreSQL evaluates it recursively."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _join(operator, parts[:middle]), _join(operator, parts[middle:])
    return f"({left} {operator} {right})"
