"""Benchmark of two worker processes beside one: calls per second, and CPU time per call.

On two cores, the workers share them with PostgreSQL and with the load generator. So the rate shows
what this machine gains; the CPU time per call is what holds on a machine with more cores.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from tools.benchmarks.harness import WARM, Bench, Sample, Side, compared
from tools.benchmarks.messages import save_requests
from tools.benchmarks.results import Row, percentile
from tools.benchmarks.servers import Processor, Served, as_served, ours

IN_FLIGHT = 64
_ONE, _TWO = "one process", "two workers"


class _Costs:
    """CPU time per Save of one side, in ms, and cores of the load generator."""

    def __init__(self) -> None:
        self.server: list[Sample] = []
        self.database: list[float] = []
        self.client: list[float] = []

    def __str__(self) -> str:
        database, client = percentile(self.database, 0.5), percentile(self.client, 0.5)
        return f"PostgreSQL {database:.2f} ms per call, load generator {client:.2f} cores"


def workers(bench: Bench) -> list[Row]:
    """Measure Save on PostgreSQL with two workers against one process."""
    with ExitStack() as stack:
        costs = {_ONE: _Costs(), _TWO: _Costs()}
        sides = []
        for number, name in enumerate((_ONE, _TWO), 1):
            dsn = stack.enter_context(bench.postgres.database())
            server = ours(postgres=dsn, options=("--workers", str(number)))
            served = as_served(stack.enter_context(server))
            sides.append(Side(name, _saves(bench, served, name, costs[name])))
        found = bench.alternate(sides)
    spent = {name: cost.server for name, cost in costs.items()}
    notes = tuple(f"{name}: {cost}" for name, cost in costs.items())
    pair = (_TWO, _ONE)
    what = f"Save on PostgreSQL, two workers ÷ one process, {IN_FLIGHT} in flight"
    return [
        compared("workers", what, found, pair, "calls/s", notes=notes),
        compared("workers", f"{what}: CPU time of the server per call", spent, pair, "ms"),
    ]


def _saves(bench: Bench, served: Served, name: str, costs: _Costs) -> Callable[[int], Sample]:
    calls = bench.sizes.calls

    def saves(number: int) -> Sample:
        count = calls if number else calls // WARM
        requests = save_requests(f"{name}-{number}", 0, count)
        database = Processor(bench.postgres.pid)
        sample, load = bench.calls(served, "Save", requests, IN_FLIGHT)
        if number:
            per_call = 1000 / len(load.calls)
            costs.server.append(Sample(sample.processor * load.seconds * per_call))
            costs.database.append(database.seconds() * per_call)
            costs.client.append(load.processor)
        return sample

    return saves
