"""Totals of many rounds, and their text form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from sagastore_server.storage.phase import Phase
from tests.simulation.faults import KINDS
from tests.simulation.rounds import Result

PHASES = tuple(phase.slug for phase in Phase)
TRIPS = ("mid-change kill", "mid-change cut", "mid-change slow")


def expected() -> Iterator[tuple[str, str]]:
    """Yield every combination of fault and phase that must occur."""
    for name in KINDS:
        for phase in PHASES:
            of_the_file = name.startswith("disk") or name == "PostgreSQL set back"
            early = name != "row altered" or phase in {"dual-write", "backfill"}
            if early and not (phase == "postgres-only" and of_the_file):
                yield name, phase
    for name in TRIPS:
        for phase in PHASES[:-1]:
            yield name, phase
    for phase in PHASES[1:4]:
        yield "taken over", phase
    yield "killed once PostgreSQL is the only store", "read-postgres"


class Totals:
    """Totals of many rounds."""

    def __init__(self) -> None:
        self.rounds = 0
        self.failed = 0
        self.violations = 0
        self.replayed = 0
        self.not_replayed: list[int] = []
        self.steps = 0
        self.virtual = 0.0
        self.cpu = 0.0
        self.counts: Counter[str] = Counter()
        self.profiles: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.first_failure: Result | None = None

    def add(self, result: Result) -> None:
        self.rounds += 1
        self.failed += bool(result.violations)
        self.violations += len(result.violations)
        self.steps += result.steps
        self.virtual += result.virtual
        self.cpu += result.cpu
        self.counts.update(result.counts)
        self.profiles[result.profile] += 1
        self.ended[result.ended_in] += 1
        if result.violations and (
            self.first_failure is None or result.seed < self.first_failure.seed
        ):
            self.first_failure = result

    @property
    def rounds_per_cpu_second(self) -> float:
        """Rounds per second on one core, repetitions included."""
        return (self.rounds + self.replayed) / self.cpu if self.cpu else 0.0

    def faults(self) -> int:
        """Return the number of faults."""
        return sum(count for name, count in self.counts.items() if name.startswith("fault "))

    def never(self) -> list[tuple[str, str]]:
        """Return the combinations of fault and phase that never occurred."""
        return [
            (name, phase)
            for name, phase in expected()
            if not self.counts[f"fault {name} in {phase}"]
        ]

    def progress(self, rounds: int, seconds: float) -> str:
        """Return a progress line."""
        speed = self.rounds / seconds if seconds else 0.0
        left = (rounds - self.rounds) / speed if speed else 0.0
        return (
            f"{self.rounds:,} of {rounds:,} rounds, {self.failed} failed, {speed:.1f} rounds/s, "
            f"{left:,.0f} s left"
        )

    def text(self) -> str:
        """Return the report."""
        counts = self.counts
        rows = [
            ("Rounds", f"{self.rounds:,} ({self.failed} failed)"),
            ("Violations", f"{self.violations:,}"),
            ("Rounds per second of one core", f"{self.rounds_per_cpu_second:.1f}"),
            ("Virtual time", f"{self.virtual / 3600:,.1f} h, {self.steps:,} callbacks"),
            ("Repeated in another process", f"{self.replayed:,} ({len(self.not_replayed)} differ)"),
            ("Calls", f"{counts['calls']:,}, {counts['unknown']:,} of unknown outcome"),
            ("Acknowledged writes", f"{counts['acknowledged']:,}"),
            ("of them durable on both", f"{counts['durable on both']:,}, each verified"),
            ("Changes of phase", f"{counts['changes']:,}"),
            ("Faults", f"{self.faults():,}"),
            ("AppliedIsTrue asserted", f"{counts['asserted AppliedIsTrue']:,}"),
            ("CurrentHasEverything asserted", f"{counts['asserted CurrentHasEverything']:,}"),
            ("Ended in", ", ".join(f"{name} {count}" for name, count in self._sorted(self.ended))),
            ("Profiles", ", ".join(f"{name} {n}" for name, n in self._sorted(self.profiles))),
        ]
        width = max(len(name) for name, _ in rows) + 2
        shown = [f"  {name:<{width}}{value}" for name, value in rows]
        return "\n".join([*shown, "", *self._table()])

    @staticmethod
    def _sorted(counter: Counter[str]) -> list[tuple[str, int]]:
        return sorted(counter.items())

    def _table(self) -> Iterator[str]:
        """Yield the frequency of each fault in each phase."""
        yield f"  {'fault':<40}" + "".join(f"{phase:>15}" for phase in PHASES)
        wanted = set(expected())
        for name in dict.fromkeys(name for name, _ in expected()):
            cells = [
                f"{self.counts[f'fault {name} in {phase}']:,}" if (name, phase) in wanted else "-"
                for phase in PHASES
            ]
            yield f"  {name:<40}" + "".join(f"{cell:>15}" for cell in cells)

    def as_json(self) -> dict[str, Any]:
        """Return the totals for the saved report."""
        simple = {name: value for name, value in vars(self).items() if name != "first_failure"}
        return simple | {"rounds_per_cpu_second": round(self.rounds_per_cpu_second, 2)}
