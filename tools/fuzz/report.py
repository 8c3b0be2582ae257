"""Report of a campaign, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.fuzz.fuzz_input import Input
from tools.fuzz.watched_server import Vitals


@dataclasses.dataclass
class Report:
    """Figures of one server."""

    place: str
    seed: str
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """By method and status code."""
    seconds: float = 0.0
    before: Vitals | None = None
    middle: Vitals | None = None
    after: Vitals | None = None
    canary_calls: int = 0
    canary_refused: int = 0
    canary_messages: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def inputs(self) -> int:
        """Number of inputs sent."""
        return self.kinds.total()

    def count(self, one: Input, codes: Iterable[str]) -> None:
        """Record an input and the results of its calls."""
        self.kinds[one.kind] += 1
        for code in codes:
            self.statuses[one.label, code] += 1

    def text(self) -> str:
        lines = [
            f"{self.place}: {self.inputs:,} inputs of seed {self.seed} in {self.seconds:.0f} s",
            "  inputs by kind",
            *(f"    {kind:24} {count:>8,}" for kind, count in sorted(self.kinds.items())),
            "  statuses by method",
            *self._status_lines(),
            f"  canary: {self.canary_calls:,} calls, {self.canary_refused:,} shed and repeated",
            f"  canary: {self.canary_messages:,} messages saved, all found at the end",
            *_vital_lines(self.before, self.middle, self.after),
            *(f"  FAILED: {failure}" for failure in self.failures),
        ]
        return "\n".join(lines)

    def _status_lines(self) -> list[str]:
        lines = []
        for label in sorted({label for label, _ in self.statuses}):
            counts = {code: n for (name, code), n in self.statuses.items() if name == label}
            summary = ", ".join(f"{code} {count:,}" for code, count in sorted(counts.items()))
            lines.append(f"    {label:24} {summary}")
        return lines

    def as_json(self) -> dict[str, Any]:
        statuses: dict[str, dict[str, int]] = {}
        for (label, code), count in sorted(self.statuses.items()):
            statuses.setdefault(label, {})[code] = count
        names = {field.name for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in names - {"statuses"}} | {
            "inputs": self.inputs,
            "statuses": statuses,
            "before": self.before and self.before._asdict(),
            "middle": self.middle and self.middle._asdict(),
            "after": self.after and self.after._asdict(),
        }


def write(reports: list[Report], folder: Path) -> None:
    """Write ``report.txt`` and ``report.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(report.text() for report in reports)
    (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
    made = json.dumps([report.as_json() for report in reports], indent=1)
    (folder / "report.json").write_text(made + "\n", encoding="utf-8")


def _vital_lines(*counts: Vitals | None) -> list[str]:
    taken = [one for one in counts if one is not None]
    rows = {
        "private memory, MiB": [f"{one.memory:8.0f}" for one in taken],
        "resident, MiB": [f"{one.resident:8.0f}" for one in taken],
        "open files": [f"{one.files:8}" for one in taken],
        "threads": [f"{one.threads:8}" for one in taken],
        "tasks": [f"{sum(one.tasks.values()):8}" for one in taken],
    }
    return [
        "  after the warm-up, halfway, and at the end",
        *(f"    {name:24} {' '.join(values)}" for name, values in rows.items()),
    ]
