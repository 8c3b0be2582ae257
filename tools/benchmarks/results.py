"""What a measurement comes to: ratios with their spread, beside the target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Target(NamedTuple):
    """What a median must reach, or must not exceed."""

    bound: float
    at_least: bool
    unit: str = ""
    """Empty for a ratio."""

    def __str__(self) -> str:
        """Say it for people."""
        return f"{'≥' if self.at_least else '≤'} {number(self.bound, self.unit)}"

    def is_met_by(self, value: float) -> bool:
        """Tell whether a value reaches it; what could not be measured does not."""
        if math.isnan(value):
            return False
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Target:
    """Return the target of a ratio that may be more."""
    return Target(bound, at_least=True)


def at_most(bound: float, unit: str = "") -> Target:
    """Return the target of a ratio, or of a figure, that may be less."""
    return Target(bound, at_least=False, unit=unit)


class Row(NamedTuple):
    """One line of the table."""

    name: str
    """Of the benchmark that made it, as BENCH takes it."""
    what: str
    values: list[float]
    """One a round: a ratio, or a figure in the unit of the target."""
    target: Target | None
    """None: shown beside the others, and not judged."""
    sides: dict[str, list[float]]
    """What the ratios were made from, one figure a round."""
    unit: str
    """Of the sides."""
    notes: tuple[str, ...] = ()
    failure: str = ""
    """Why the row counts as missed, or could not be measured, whatever its values."""
    value_unit: str = ""
    """Of the values, where there is no target to say it."""
    skipped: bool = False
    """Something that it needs is not there; ``failure`` says what."""

    @property
    def median(self) -> float:
        """The median of the values; not a number if there are none."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return (min(self.values), max(self.values)) if self.values else (math.nan, math.nan)

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``skipped``, or ``shown`` for what is not judged."""
        if self.skipped:
            return "skipped"
        if self.failure:
            return "missed"
        if self.target is None:
            return "shown"
        return "met" if self.target.is_met_by(self.median) else "missed"

    def as_json(self) -> dict[str, Any]:
        """Return everything, for programs."""
        low, high = self.spread
        return {
            "name": self.name,
            "what": self.what,
            "median": _finite(self.median),
            "min": _finite(low),
            "max": _finite(high),
            "values": self.values,
            "unit": self.target.unit if self.target else self.value_unit,
            "target": str(self.target) if self.target else None,
            "verdict": self.verdict,
            "sides": self.sides,
            "sides_unit": self.unit,
            "notes": list(self.notes),
            "failure": self.failure,
        }


def merged(visits: Sequence[Row]) -> Row:
    """Return one row of what was measured at several times."""
    first = visits[0]
    sides: dict[str, list[float]] = {}
    for row in visits:
        for side, values in row.sides.items():
            sides.setdefault(side, []).extend(values)
    return first._replace(
        values=[value for row in visits for value in row.values],
        sides=sides,
        notes=tuple(dict.fromkeys(note for row in visits for note in row.notes if note)),
        failure="; ".join(dict.fromkeys(row.failure for row in visits if row.failure)),
    )


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each round: both sides of one were measured side by side."""
    return [one / other if other else math.nan for one, other in zip(over, under, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of all do not exceed (nearest rank); NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def number(value: float, unit: str = "") -> str:
    """Write a figure for people: two decimals for a ratio, three digits otherwise."""
    if math.isnan(value):
        return "-"
    if not unit:
        return f"{value:.2f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
