"""Plan of a round, drawn from its seed: start, faults and their times, operator.

All random choices are made here or from generators created here, so a seed determines a round. The
timing of processes and packets depends on the machine: a repeated round has the same faults, but
not the same interleaving.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sagastore import Phase
from tools.chaos.faults import FAULTS, Fault
from tools.chaos.set_back_faults import DIRECTORY, ROWS

PHASES = (
    Phase.SQLITE_ONLY,
    Phase.DUAL_WRITE,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.POSTGRES_ONLY,
)

_SHARED = PHASES[1:4]
"""Phases in which two servers compete for PostgreSQL's lease."""

TAKEOVERS = 0.06
"""Share of the rounds in these phases in which a second server takes over."""

_NEED_SQLITE = ("SQLite's", "reads of SQLite", "a backup", DIRECTORY, ROWS)
"""Faults that are meaningless once the file is an archive, or would lose data it does not have."""


class Planned(NamedTuple):
    """Fault and its time."""

    name: str
    at: float
    """Seconds since the start of the round."""
    seconds: float
    number: int
    """Number of the fault in the round; seeds its generator."""


class Plan(NamedTuple):
    """Plan of a round."""

    seed: int
    begins: Phase
    origin: str
    """``legacy``: a file of the legacy application; ``fresh``: an empty file."""
    seconds: float
    """Duration of faults and clients in seconds."""
    faults: tuple[Planned, ...]
    steers: bool
    """Whether an operator changes phases."""
    completes: bool
    """Whether the last step is taken at the end."""
    patience: float
    """Seconds that the server waits for an unresponsive PostgreSQL."""
    takes_over: bool = False
    """Whether a second server replaces the first (`lease_takeover`); excludes other faults."""

    @property
    def name(self) -> str:
        """Template that the round starts from."""
        return f"{self.origin}_{self.begins.name.lower()}"

    @property
    def needs_clock(self) -> bool:
        """Whether the server must be patched, for example to make its clock jump."""
        if self.takes_over:
            return True
        begins_dual_write = self.steers and self.begins is Phase.SQLITE_ONLY
        return begins_dual_write or any(FAULTS[one.name].needs == "clock" for one in self.faults)

    @property
    def fault_names(self) -> list[str]:
        """Names of all its faults."""
        return ["a takeover"] if self.takes_over else [one.name for one in self.faults]

    def rng(self, purpose: str) -> random.Random:
        """Return a random generator of this round for one purpose."""
        return random.Random(f"{self.seed}/{purpose}")

    def description(self) -> str:
        """Return a one-line description."""
        if self.takes_over:
            return f"{self.origin}, from {self.begins.label}, takeover"
        steered = "steered" if self.steers else "not steered"
        end = ", completed" if self.completes else ""
        return (
            f"{self.origin}, from {self.begins.label}, {steered}{end}, {len(self.faults)} faults, "
            f"{self.seconds:.0f} s"
        )


def draw(seed: int, is_available: Callable[[Fault], bool], seconds: float = 0.0) -> Plan:
    """Return the plan of a seed, using only faults that this machine can produce.

    Five consecutive seeds start in all five phases, ten also with both origins. ``seconds``
    replaces the random duration of 7 to 11 s.
    """
    rng = random.Random(f"{seed}/plan")
    if PHASES[seed % 5] in _SHARED and random.Random(f"{seed}/takeover").random() < TAKEOVERS:
        return _takeover(seed)
    begins = PHASES[seed % 5]
    origin = _origin(seed)
    drawn = rng.uniform(7.0, 11.0)
    seconds = seconds or drawn
    # A few kinds of fault per round: repeated faults of one kind find more than one of each.
    kinds = [kind for kind in FAULTS.values() if _fits(kind, begins) and is_available(kind)]
    chosen = rng.sample(kinds, min(len(kinds), rng.choice([3, 5, 8, 12])))
    count = rng.choice([3, 5, 5, 7, 9])
    faults = tuple(_times(rng, chosen, count, seconds)) if chosen else ()
    return Plan(
        seed,
        begins,
        origin,
        seconds,
        faults,
        steers=begins is not Phase.POSTGRES_ONLY and rng.random() < 0.8,
        completes=begins is not Phase.POSTGRES_ONLY and rng.random() < 0.4,
        patience=rng.choice([0.3, 0.6, 1.5, 1.5]),
    )


def _takeover(seed: int) -> Plan:
    return Plan(
        seed,
        PHASES[seed % 5],
        _origin(seed),
        seconds=0.0,
        faults=(),
        steers=False,
        completes=False,
        patience=1.5,
        takes_over=True,
    )


def _origin(seed: int) -> str:
    return "legacy" if seed // 5 % 2 == 0 else "fresh"


def _fits(kind: Fault, begins: Phase) -> bool:
    return begins is not Phase.POSTGRES_ONLY or not kind.name.startswith(_NEED_SQLITE)


def _times(rng: random.Random, kinds: list[Fault], count: int, seconds: float) -> Iterable[Planned]:
    """Yield faults, some of them at the same time as others."""
    weights = [kind.weight for kind in kinds]
    times = sorted(rng.uniform(0.3, seconds - 0.5) for _ in range(count))
    for number, at in enumerate(times):
        kind = rng.choices(kinds, weights)[0]
        yield Planned(kind.name, round(at, 3), round(rng.uniform(*kind.lasts), 3), number)
