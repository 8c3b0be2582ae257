"""Compiles search criteria into one PostgreSQL statement.

Words and prefixes become one ``tsquery`` of quoted lexemes: what a caller typed cannot
reach the syntax of either SQL or ``tsquery``, because terms hold letters and digits
only, and everything is a parameter. A phrase is looked up by its words and checked
against ``terms``: positions in a ``tsvector`` end at 16,383, and at 256 for one lexeme.

The planner chooses between a walk in chronological order, which ends when the page is full,
and the index of words. It knows how frequent words are, and guesses that of prefixes: for one
that nothing begins with it may walk a million rows in vain. So a search for a prefix
(``guesses``) looks at a block of the first rows in order; if that does not fill the page, at
the larger one that should, as dense as matches are; and if there are too few for that, all
matches are looked up, in a way that cannot walk.
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


FIRST_BLOCK = 2000
"""Rows of the first block: reading them takes a few milliseconds, about as long as a page."""

_LARGEST_BLOCK = 50_000
"""Rows of a block beyond which, at a million messages, looking up all matches takes less time."""

_SPARE = 1.5
"""How much larger the next block is than one that would do, were matches as dense everywhere."""


class SearchStatement(NamedTuple):
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


def guesses(criteria: Criteria) -> bool:
    """Tell whether PostgreSQL would have to guess how many messages match."""
    # The rows of a session are few: whatever the planner does with them is right.
    if criteria.text is None or criteria.session_id is not None:
        return False
    leaves = (leaf for option in criteria.text.alternatives for leaf in option.required)
    return any(isinstance(leaf, Prefix) for leaf in leaves)


def next_block(block: int, found: int, wanted: int) -> int:
    """Return the rows of the block to look at after one that held ``found``; 0: look all up."""
    if block != FIRST_BLOCK or not found:
        return 0
    size = int(_SPARE * block * wanted / found)
    return size if size <= _LARGEST_BLOCK else 0


def compile_search(criteria: Criteria, scan: Scan, block: int | None = None) -> SearchStatement:
    """Return the statement that finds what ``criteria`` asks, as far as ``scan`` says.

    It yields one row more than the page holds where there is one, and not many more:
    rows are left out that cannot be in the page because of the bytes before them.

    With a ``block`` it looks at so many rows only, the first in order; with 0 at all, and
    never by a walk in order; with None PostgreSQL decides.
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
    # No index is in the order of an expression.
    moment = "(m.timestamp + interval '0')" if block == 0 else "m.timestamp"
    where = _where(conditions)
    limit = parameters.add(scan.limit + 1)
    # The parts joined here are constants of this module; every value is a parameter.
    sql = f"""{options}SELECT {_COLUMNS} FROM (
    SELECT *, sum(weight) OVER (
        ORDER BY timestamp {direction}, id {direction} ROWS UNBOUNDED PRECEDING
    ) - weight AS before
    FROM (
        SELECT m.*, {_WEIGHT} AS weight FROM {source} AS m{where}
        ORDER BY {moment} {direction}, m.id {direction} LIMIT {limit}::bigint
    ) AS found
) AS weighed
WHERE before <= {MAX_PAGE_BYTES} ORDER BY timestamp {direction}, id {direction}"""  # noqa: S608
    return SearchStatement(sql, parameters.values)


def _where(conditions: Sequence[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _place(criteria: Criteria, scan: Scan, parameters: _Parameters) -> list[str]:
    """Return the conditions that say where in the order to look."""
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
    """Return the conditions on what a message holds, its text aside."""
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
