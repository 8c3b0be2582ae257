"""Compiler from the wanted leaves of a query to a SQL expression of the score.

The expression gives the same double as ``search.ranking.score``: the same operations in the same
order, on the counts that Python counts. It reads ``terms`` and ``search``, no content:

* A word counts as often as it is in ``terms``. Its needle has the spaces around it, and two words
  share one, so it is looked for in ``terms`` with doubled spaces.
* A phrase counts as Python's ``str.count`` does: occurrences that share no character. ``replace``
  finds the same.
* A prefix counts the stems that begin with it, or else the distinct unstemmed words, which are the
  lexemes of ``search`` that begin with ``=``.
"""

from __future__ import annotations

from collections.abc import Callable

from sagastore_server.search.ranking import LENGTH_WEIGHT, SATURATION, USUAL_LENGTH
from sagastore_server.storage.query import Leaf, Prefix, TextQuery

Add = Callable[[object], str]
"""Adds a parameter and returns its placeholder."""

_NORM = (
    f"({SATURATION}::float8 * ({1 - LENGTH_WEIGHT}::float8"
    f" + {LENGTH_WEIGHT}::float8 * counted.length::float8 / {USUAL_LENGTH}::float8))"
)
_SCORE = "round(({total}) * 1e6::float8) / 1e6::float8"
_OCCURRENCES = "(octet_length({text}) - octet_length(replace({text}, {needle}::text, ''))) / {size}"
_UNSTEMMED = (
    "(SELECT count(*) FROM unnest(tsvector_to_array({search})) AS lexeme"
    " WHERE starts_with(lexeme, {lexeme}::text))"
)


def score_expression(text: TextQuery, source: str, add: Add) -> str:
    """Return a scalar subquery for the score of the row ``source``, which has terms and search."""
    wanted = text.wanted
    if not wanted:
        return "0.0::float8"
    counts = ", ".join(
        f"({_count(leaf, source, add)})::float8 AS n{at}" for at, leaf in enumerate(wanted)
    )
    total = " + ".join(
        f"counted.n{at} * {SATURATION + 1}::float8 / (counted.n{at} + {_NORM})"
        for at in range(len(wanted))
    )
    length = f"octet_length({source}.terms) - octet_length(replace({source}.terms, ' ', '')) - 1"
    # Safe to join: the parts are constants, and every value is a parameter. OFFSET 0 keeps
    # PostgreSQL from evaluating a count wherever it is used.
    return (
        f"(SELECT {_SCORE.format(total=total)} FROM"  # noqa: S608
        f" (SELECT {counts}, {length} AS length OFFSET 0) AS counted)"
    )


def _count(leaf: Leaf, source: str, add: Add) -> str:
    if isinstance(leaf, Prefix):
        stems = _occurrences(f"{source}.terms", f" {leaf.text}", add)
        lexeme = add(f"={leaf.text}")
        unstemmed = _UNSTEMMED.format(search=f"{source}.search", lexeme=lexeme)
        return f"CASE WHEN {stems} > 0 THEN {stems} ELSE {unstemmed} END"
    needle = f" {' '.join(leaf.terms)} "
    if len(leaf.terms) > 1:
        return _occurrences(f"{source}.terms", needle, add)
    return _occurrences(f"replace({source}.terms, ' ', '  ')", needle, add)


def _occurrences(text: str, needle: str, add: Add) -> str:
    return _OCCURRENCES.format(text=text, needle=add(needle), size=len(needle.encode()))
