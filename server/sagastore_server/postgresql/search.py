"""Compiles search criteria into one PostgreSQL statement.

Words and prefixes become one ``tsquery`` of quoted lexemes: what a caller typed cannot
reach the syntax of either SQL or ``tsquery``, because terms hold letters and digits
only, and everything is a parameter. A phrase is looked up by its words and checked
against ``terms``: positions in a ``tsvector`` end at 16,383, and at 256 for one lexeme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sagastore_server.storage.jsontext import canonical_tags
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
"""At most ``Message.size``, so that rows left out by it could not have been in the page."""

_OPTIONS = """WITH options AS MATERIALIZED (
    SELECT query::tsquery, string_to_array(wanted, '|') AS wanted,
        string_to_array(unwanted, '|') AS unwanted
    FROM unnest({}::text[], {}::text[], {}::text[]) AS option (query, wanted, unwanted)
)
"""

# A subquery, not a join: the planner must not think of beginning with it.
_HOLDS = """(
    SELECT true FROM options AS o
    WHERE (o.query IS NULL OR m.search @@ o.query)
        AND NOT EXISTS (SELECT FROM unnest(o.wanted) AS p WHERE strpos(m.terms, p) = 0)
        AND NOT EXISTS (SELECT FROM unnest(o.unwanted) AS p WHERE strpos(m.terms, p) > 0)
    LIMIT 1
)"""


class Statement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


class _Parameters:
    """Collects values, and says how a statement names them."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


def compile_search(criteria: Criteria, scan: Scan) -> Statement:
    """Return the statement that finds what ``criteria`` asks, as far as ``scan`` says.

    It yields one row more than the page holds where there is one, and not many more:
    rows are left out that cannot be in the page because of the bytes before them.
    """
    parameters = _Parameters()
    options, conditions = _text(criteria.text, parameters)
    conditions += _conditions(criteria, scan, parameters)
    where = " WHERE " + " AND ".join(conditions) if conditions else ""
    direction = "DESC" if scan.newest_first else "ASC"
    limit = parameters.add(scan.limit + 1)
    # The parts joined here are constants of this module; every value is a parameter.
    sql = f"""{options}SELECT {_COLUMNS} FROM (
    SELECT *, sum(weight) OVER (
        ORDER BY timestamp {direction}, id {direction} ROWS UNBOUNDED PRECEDING
    ) - weight AS before
    FROM (
        SELECT m.*, {_WEIGHT} AS weight FROM messages AS m{where}
        ORDER BY m.timestamp {direction}, m.id {direction} LIMIT {limit}::bigint
    ) AS found
) AS weighed
WHERE before <= {MAX_PAGE_BYTES} ORDER BY timestamp {direction}, id {direction}"""  # noqa: S608
    return Statement(sql, parameters.values)


def _conditions(criteria: Criteria, scan: Scan, parameters: _Parameters) -> list[str]:
    ahead, back = ("<", ">=") if scan.newest_first else (">", "<=")
    conditions = [
        f"m.{column} {operator} {parameters.add(value)}::{kind}"
        for column, operator, value, kind in (
            ("session_id", "=", criteria.session_id, "text"),
            ("provider", "=", criteria.provider, "text"),
            ("role", "=", criteria.role, "text"),
            ("timestamp", ">=", criteria.start, "timestamptz"),
            ("timestamp", "<", criteria.end, "timestamptz"),
            ("tags", "@>", _tags(criteria.tags), "jsonb"),
            ("metadata", "@>", _metadata(criteria.metadata), "jsonb"),
        )
        if value is not None
    ]
    for operator, position in ((ahead, scan.after), (back, scan.until)):
        if position is not None:
            moment, message_id = map(parameters.add, _clamped(position))
            conditions.append(
                f"(m.timestamp, m.id) {operator} ({moment}::timestamptz, {message_id}::text)"
            )
    return conditions


def _tags(tags: tuple[str, ...]) -> str | None:
    return canonical_tags(tags) if tags else None


def _metadata(metadata: str | None) -> str | None:
    return None if metadata == "{}" else metadata


def _clamped(position: Position) -> Position:
    """Return a position that PostgreSQL can hold, on the same side of every message."""
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
    """Return what every match has and has not in ``search``; None: nothing can be said."""
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
    # Only ASCII words have a stem of their own, so only they are indexed as written.
    return f"('{text}':* | '={text}':*)" if text.isascii() else f"'{text}':*"


def _phrases(leaf: Leaf) -> bool:
    """Tell whether a leaf must be checked against ``terms``."""
    return isinstance(leaf, Phrase) and len(leaf.terms) > 1


def _checked(leaves: tuple[Leaf, ...]) -> str | None:
    phrases = (leaf for leaf in leaves if isinstance(leaf, Phrase) and len(leaf.terms) > 1)
    return "|".join(f" {' '.join(phrase.terms)} " for phrase in phrases) or None


def _join(operator: str, parts: Sequence[str]) -> str:
    """Join parts as a balanced tree: PostgreSQL walks it recursively, on a small stack."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _join(operator, parts[:middle]), _join(operator, parts[middle:])
    return f"({left} {operator} {right})"
