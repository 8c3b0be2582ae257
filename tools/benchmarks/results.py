"""Results of measurements: ratios with their spread, and targets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Target(NamedTuple):
    """Bound that a median must reach or must not exceed."""

    bound: float
    at_least: bool
    unit: str = ""
    """Empty for a ratio."""

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {number(self.bound, self.unit)}"

    def is_met_by(self, value: float) -> bool:
        """Return whether a value meets the target; NaN does not."""
        if math.isnan(value):
            return False
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Target:
    """Return a target with a lower bound."""
    return Target(bound, at_least=True)


def at_most(bound: float, unit: str = "") -> Target:
    """Return a target with an upper bound."""
    return Target(bound, at_least=False, unit=unit)


class Row(NamedTuple):
    """Row of the table."""

    name: str
    """Name of the benchmark, as in BENCH."""
    what: str
    values: list[float]
    """One per round: a ratio, or a figure in the unit of the target."""
    target: Target | None
    """None: the row is shown without a verdict."""
    sides: dict[str, list[float]]
    """Figures that the ratios were computed from, one per round."""
    unit: str
    """Unit of the sides."""
    notes: tuple[str, ...] = ()
    failure: str = ""
    """Reason why the row counts as missed or was not measured, regardless of its values."""
    value_unit: str = ""
    """Unit of the values if there is no target."""
    skipped: bool = False
    """Whether a requirement is missing; ``failure`` says which."""

    @property
    def median(self) -> float:
        """Median of the values; NaN if there are none."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        """Minimum and maximum."""
        return (min(self.values), max(self.values)) if self.values else (math.nan, math.nan)

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``skipped``, or ``shown`` if there is no target."""
        if self.skipped:
            return "skipped"
        if self.failure:
            return "missed"
        if self.target is None:
            return "shown"
        return "met" if self.target.is_met_by(self.median) else "missed"

    def as_json(self) -> dict[str, Any]:
        """Return all values for the results file."""
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
    """Merge the rows of several visits."""
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
    """Return the ratio of each round."""
    return [one / other if other else math.nan for one, other in zip(over, under, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile of the values (nearest rank); NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def number(value: float, unit: str = "") -> str:
    """Format a figure: two decimals for a ratio, three significant digits otherwise."""
    if math.isnan(value):
        return "-"
    if not unit:
        return f"{value:.2f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
