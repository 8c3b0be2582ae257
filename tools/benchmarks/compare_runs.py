"""Comparison of two runs of ``make bench``, as a Markdown table.

    python -m tools.benchmarks.compare_runs FIRST.json SECOND.json

Two medians agree if their printed spreads overlap; a row that does not agree is marked with *. A
figure that is measured once per run has no spread and is only shown. Exit status 1 if a row does
not agree, 2 if the files are not results of the same benchmarks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmarks.results import number


class Pair(NamedTuple):
    """The same row of both runs."""

    first: dict[str, Any]
    second: dict[str, Any]

    @property
    def has_spread(self) -> bool:
        """Whether both were measured more than once."""
        return all(len(row["values"]) > 1 for row in self)

    @property
    def agrees(self) -> bool:
        """Whether the spreads overlap; rows without a spread always agree."""
        return not self.has_spread or bool(
            self.first["min"] <= self.second["max"] and self.second["min"] <= self.first["max"]
        )

    @property
    def verdict(self) -> str:
        """``met`` or ``missed`` if both runs agree, else ``not decided``."""
        both = {self.first["verdict"], self.second["verdict"]}
        return both.pop() if len(both) == 1 else "not decided"


class IncomparableError(ValueError):
    """The files cannot be compared; the message says why."""


def pairs(first: dict[str, Any], second: dict[str, Any]) -> list[Pair]:
    """Match the measured rows of two runs, in the order of the first.

    Raises:
        IncomparableError: A row of one run is missing in the other.
    """
    rows = [{(row["name"], row["what"]): row for row in run["rows"]} for run in (first, second)]
    if lone := sorted(set(rows[0]) ^ set(rows[1])):
        raise IncomparableError(f"only one run has: {': '.join(lone[0])}")
    found = (Pair(row, rows[1][key]) for key, row in rows[0].items())
    return [pair for pair in found if pair.first["median"] is not None]


def markdown(found: list[Pair]) -> str:
    """Return the comparison as a Markdown table."""
    lines = ["| `BENCH` | what | first run | second run | target | |", "|---|---|---|---|---|---|"]
    for pair in found:
        mark = "" if pair.agrees else " *"
        target = pair.first["target"] or ""
        verdict = pair.verdict if target else ""
        what = pair.first["what"] + mark
        cells = (f"`{pair.first['name']}`", what, *map(_formatted, pair), target, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(found: list[Pair]) -> str:
    """Return the number of rows that agree."""
    judged = [pair for pair in found if pair.has_spread]
    return f"{sum(pair.agrees for pair in judged)} of {len(judged)} agree within their spread"


def _formatted(row: dict[str, Any]) -> str:
    median, low, high = (row[key] for key in ("median", "min", "max"))
    text = number(median, row["unit"])
    return text if low == high else f"{text} ({number(low)} - {number(high)})"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("rows"), list):
            return found
    except (OSError, UnicodeDecodeError) as exc:
        raise IncomparableError(f"{path} cannot be read") from exc
    except json.JSONDecodeError:
        pass
    raise IncomparableError(f"{path} is not a result file of make bench")


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog="agree", description=(__doc__ or "").partition("\n")[0])
    for which in ("first", "second"):
        parser.add_argument(which, type=Path, help="build/bench/bench.json of a run")
    given = parser.parse_args()
    try:
        found = pairs(_read(given.first), _read(given.second))
    except IncomparableError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(f"{markdown(found)}\n\n{summary(found)}")
    return int(not all(pair.agrees for pair in found))


if __name__ == "__main__":
    sys.exit(main())
