"""Harness shared by all benchmarks: sizes, reference server, load generator, databases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tools.benchmarks.load import Generator, Load
from tools.benchmarks.messages import Request, save_requests
from tools.benchmarks.postgres import BenchPostgres
from tools.benchmarks.results import Row, Target, percentile, ratios
from tools.benchmarks.servers import Processor, Served, program

WARM = 8
"""The warm-up round has so many times fewer calls."""


class Sizes(NamedTuple):
    """Sizes of the measurements."""

    visits: int = 2
    """Visits per benchmark; all benchmarks run once before the next visit."""
    rounds: int = 3
    """Measured rounds per visit."""
    calls: int = 6_000
    """Calls per load."""
    bulk: int = 20_000
    """Messages per BulkSave load."""
    scale: int = 1_000_000
    """Messages of a large store."""
    small: int = 10_000
    """Messages of a small store."""
    legacy: int = 100_000
    """Rows of the legacy file for pgloader and the migration."""
    searches: int = 200
    """Searches of each kind."""
    changes: int = 20
    """Changes to READ_POSTGRES."""
    slice: float = 5.0
    """Seconds of a load during the backfill."""
    rate: int = 300
    """Calls per second of a load below saturation."""


QUICK = Sizes(1, 2, 600, 3_000, 20_000, 1_000, 5_000, 20, 3, 1.0, 100)
"""Sizes that only show that everything works."""


class Sample(NamedTuple):
    """Result of one side of a comparison in one round."""

    value: float
    processor: float = 0.0
    """Cores used by the server."""
    note: str = ""


class Side(NamedTuple):
    """Side of a comparison."""

    name: str
    measure: Callable[[int], Sample]
    """Called with the number of the round."""


class CallsFailedError(Exception):
    """Calls of a load failed unexpectedly."""


class Bench:
    """One run; shared by all benchmarks."""

    def __init__(
        self,
        sizes: Sizes,
        folder: Path,
        stack: ExitStack,
        say: Callable[[str], None],
        *,
        python: bool = False,
    ) -> None:
        """Work in ``folder``; ``stack`` stops started processes; ``say`` receives progress.

        ``python`` selects Python clients even if ghz is available.
        """
        self.sizes = sizes
        self.folder = folder
        self.say = say
        self._stack = stack
        self._files = itertools.count()
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.generator = Generator(folder / "tmp", python=python)
        self.peak_echo = 0.0
        """Calls per second: the highest rate of the echo server."""
        self.peak_ours = 0.0
        """Calls per second: the highest rate of any other server."""

    @cached_property
    def echo(self) -> Served:
        """Server that only echoes requests."""
        return self._stack.enter_context(program("echo_server"))

    @cached_property
    def postgres(self) -> BenchPostgres:
        """Database server."""
        server = BenchPostgres(self.folder / "pg")
        self._stack.callback(server.stop)
        server.start()
        server.drop_leftovers()
        return server

    def load_description(self) -> str:
        """Describe the load generator and whether it was the bottleneck."""
        said = f"{self.generator.name}, which used at most {self.generator.most:.2f} cores"
        if self.peak_echo and self.peak_ours:
            said += (
                f"; peak: {self.peak_echo:,.0f} calls/s to the echo server, "
                f"{self.peak_ours:,.0f} to any other"
            )
        return said

    def postgres_description(self) -> str:
        """Describe the PostgreSQL that was measured, if any."""
        return self.postgres.version() if "postgres" in self.__dict__ else "not used"

    @contextmanager
    def file(self, suffix: str = ".db") -> Iterator[Path]:
        """Yield the path of a file; remove it and its companion files."""
        path = self.folder / "tmp" / f"{next(self._files)}{suffix}"
        try:
            yield path
        finally:
            for one in path.parent.glob(f"{path.name}*"):
                one.chmod(0o600)
                one.unlink()

    def calls(
        self,
        server: Served,
        method: str,
        requests: Sequence[Request],
        in_flight: int,
        *others: int,
    ) -> tuple[Sample, Load]:
        """Send calls as fast as they are answered; ``others`` are further serving processes.

        Raises:
            CallsFailedError: A call failed.
        """
        taken = Processor(server.pid, *others)
        done = self.generator.send(server.address, method, requests, in_flight)
        share = taken.seconds() / done.seconds
        if done.failures:
            failure, times = done.failures.most_common(1)[0]
            raise CallsFailedError(f"{times} calls of {method} failed, with {failure}")
        if method == "Echo":
            self.peak_echo = max(self.peak_echo, done.rate)
        else:
            self.peak_ours = max(self.peak_ours, done.rate)
        return Sample(done.rate, share), done

    def saves(
        self, server: Served, name: str, in_flight: int, *others: int
    ) -> Callable[[int], Sample]:
        """Return a function that measures saves of new messages, different in each round."""

        def measure(number: int) -> Sample:
            count = self.sizes.calls if number else self.sizes.calls // WARM
            method = "Echo" if server == self.echo else "Save"
            requests = save_requests(f"{name}-{in_flight}-{number}", 0, count)
            return self.calls(server, method, requests, in_flight, *others)[0]

        return measure

    def alternate(self, sides: Sequence[Side]) -> dict[str, list[Sample]]:
        """Measure all sides in each round, in alternating order, after a warm-up round."""
        found: dict[str, list[Sample]] = {side.name: [] for side in sides}
        for number in range(self.sizes.rounds + 1):
            order = sides if number % 2 else list(reversed(sides))
            for side in order:
                sample = side.measure(number)
                self.say(f"round {number} of {self.sizes.rounds}: {side.name}: {sample.value:,.0f}")
                if number:
                    found[side.name].append(sample)
        return found


def compared(
    name: str,
    what: str,
    found: dict[str, list[Sample]],
    sides: tuple[str, str],
    unit: str,
    *,
    target: Target | None = None,
    notes: Sequence[str] = (),
) -> Row:
    """Return the row of one ratio, the first side ÷ the second, per round."""
    over, under = sides
    values = {side: [sample.value for sample in found[side]] for side in sides}
    cores = [
        f"{side}: {percentile([sample.processor for sample in found[side]], 0.5):.2f} cores"
        for side in sides
        if any(sample.processor for sample in found[side])
    ]
    said = [sample.note for side in sides for sample in found[side] if sample.note]
    return Row(
        name,
        what,
        ratios(values[over], values[under]),
        target,
        values,
        unit,
        (*notes, *cores, *dict.fromkeys(said)),
    )
