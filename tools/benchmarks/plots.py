"""Plots of throughput and latency over calls in flight, and of throughput over stored messages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.benchmarks.bulk import fill
from tools.benchmarks.harness import WARM, Bench
from tools.benchmarks.large_stores import NAME, copied, stores
from tools.benchmarks.messages import BATCH, get_requests, save_requests
from tools.benchmarks.results import Row, percentile
from tools.benchmarks.servers import Served, as_served, ours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
STEPS = 4
"""Number of sizes below the large store at which calls are measured, up to a tenth of it."""
_FEWEST = 300
_MOST = 4_000
"""Maximum calls per point."""


class Point(NamedTuple):
    """Result for one number of calls in flight."""

    in_flight: int
    rate: float
    latencies: dict[str, float]
    """Milliseconds by percentile."""
    failed: int


def over_in_flight(bench: Bench) -> list[Row]:
    """Plot throughput and latency over the number of calls in flight."""
    with ExitStack() as stack:
        sqlite = as_served(stack.enter_context(ours(stack.enter_context(bench.file()))))
        dsn = stack.enter_context(bench.postgres.database())
        postgres = as_served(stack.enter_context(ours(postgres=dsn)))
        sides = [
            ("echo", "Echo", bench.echo),
            ("Save, SQLite", "Save", sqlite),
            ("Save, PostgreSQL", "Save", postgres),
            ("Get, SQLite", "Get", sqlite),
            ("Get, PostgreSQL", "Get", postgres),
        ]
        for server in (sqlite, postgres):
            fill(bench, server, "stored", bench.sizes.small)
        found: dict[str, list[Point]] = {name: [] for name, _, _ in sides}
        for in_flight in IN_FLIGHT:
            for name, method, server in sides:
                point = _point(bench, server, method, in_flight)
                found[name].append(point)
                bench.say(f"{name}, {in_flight} in flight: {point.rate:,.0f} calls/s")
    path = bench.folder / "in-flight.png"
    _draw_in_flight(found).savefig(path)
    failed = {name: sum(point.failed for point in points) for name, points in found.items()}
    notes = [f"{name}: {count} calls refused" for name, count in failed.items() if count]
    return [
        Row(
            "plot-in-flight",
            f"calls/s with {', '.join(map(str, IN_FLIGHT))} in flight",
            [],
            None,
            {name: [point.rate for point in points] for name, points in found.items()}
            | {
                f"{name}, {share} in ms": [point.latencies[share] for point in points]
                for name, points in found.items()
                for _, share in SHARES
            },
            "",
            (*notes, str(path)),
        )
    ]


def over_rows(bench: Bench) -> list[Row]:
    """Plot throughput over the number of stored messages."""
    made, postgres = stores(bench), bench.postgres
    growth = _steps(bench.sizes.small, made.rows // 10)
    found: dict[str, list[float]] = {}
    with bench.file() as file, ours(file) as server:
        sizes = _grow(bench, as_served(server), "SQLite", growth, found)
    with copied(bench, made.alone) as file, ours(file) as server:
        _measure(bench, as_served(server), "SQLite", (NAME, made.rows), found)
    with postgres.database() as dsn, ours(postgres=dsn) as server:
        _grow(bench, as_served(server), "PostgreSQL", growth, found)
    with postgres.database(made.alone_database) as dsn, ours(postgres=dsn) as server:
        _measure(bench, as_served(server), "PostgreSQL", (NAME, made.rows), found)
    sizes.append(made.rows)
    path = bench.folder / "stored.png"
    _draw_rows(sizes, found).savefig(path)
    what = f"calls/s, messages/s with {', '.join(f'{size:,}' for size in sizes)} stored"
    return [Row("plot-rows", what, [], None, found, "", (str(path),))]


def _point(bench: Bench, server: Served, method: str, in_flight: int) -> Point:
    # Fewer calls in flight mean lower rates; each point takes a few seconds at most.
    count = min(_MOST, max(_FEWEST, bench.sizes.calls * in_flight // 64))
    if method == "Get":
        requests = get_requests("stored", bench.sizes.small, count)
    else:
        requests = save_requests(f"plot-{in_flight}", 0, count)
    load = bench.generator.send(server.address, method, requests, in_flight)
    latencies = {name: percentile(load.latencies, share) * 1000 for share, name in SHARES}
    return Point(in_flight, load.rate, latencies, sum(load.failures.values()))


def _steps(small: int, large: int) -> list[int]:
    """Return sizes that grow by a constant factor."""
    factor = (large / small) ** (1 / (STEPS - 1))
    return [round(small * factor**number) for number in range(STEPS)]


def _grow(
    bench: Bench, server: Served, where: str, sizes: Sequence[int], found: dict[str, list[float]]
) -> list[int]:
    """Fill a store step by step and measure at each size; return the number of messages."""
    stored, reached = 0, []
    for size in sizes:
        new = max(BATCH, size - stored)
        fill(bench, server, f"growth-{size}", new)
        reached.append(stored + new)
        stored += new + _measure(bench, server, where, (f"growth-{size}", new), found)
    return reached


def _measure(
    bench: Bench,
    server: Served,
    where: str,
    known: tuple[str, int],
    found: dict[str, list[float]],
) -> int:
    """Measure each kind of call; return the number of added messages.

    ``known`` is the name of stored messages, and their number.
    """
    calls, bulk = bench.sizes.calls // 2, bench.sizes.bulk // 4
    name, count = known
    gets = get_requests(name, count, calls)
    bench.calls(server, "Get", gets[: calls // WARM], 64)
    saves = save_requests(f"at-{name}", 0, calls)
    measured = {
        f"Save, {where}": bench.calls(server, "Save", saves, 64)[0].value,
        f"Get, {where}": bench.calls(server, "Get", gets, 64)[0].value,
        f"BulkSave, {where}": fill(bench, server, f"bulk-at-{name}", bulk).value,
    }
    for what, value in measured.items():
        found.setdefault(what, []).append(value)
    summary = ", ".join(f"{what} {value:,.0f}" for what, value in measured.items())
    bench.say(f"{name}: {summary}")
    return calls + bulk


def _figure(plots: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7 * plots, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, plots, squeeze=False)[0])


def _draw_in_flight(found: dict[str, list[Point]]) -> Figure:
    figure, (rates, latencies) = _figure(2)
    for number, (name, points) in enumerate(found.items()):
        at = [point.in_flight for point in points]
        rates.plot(at, [point.rate for point in points], "o-", label=name)
        for style, (_, share) in zip(("-", "--", ":"), SHARES, strict=True):
            values = [point.latencies[share] for point in points]
            latencies.plot(at, values, style, color=f"C{number}", label=f"{name}, {share}")
    rates.set(xscale="log", xlabel="calls in flight", ylabel="calls/s", ylim=(0, None))
    latencies.set(xscale="log", yscale="log", xlabel="calls in flight", ylabel="ms")
    for axes in (rates, latencies):
        axes.set_xticks(IN_FLIGHT, [str(number) for number in IN_FLIGHT])
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _draw_rows(sizes: Sequence[int], found: dict[str, list[float]]) -> Figure:
    figure, axes = _figure(2)
    for name, values in found.items():
        place = axes[1] if name.startswith("BulkSave") else axes[0]
        place.plot(sizes, values, "o-", label=name)
    for place, unit in zip(axes, ("calls/s, 64 in flight", "messages/s"), strict=True):
        place.set(xscale="log", xlabel="stored messages", ylabel=unit, ylim=(0, None))
        place.grid(visible=True, alpha=0.3)
        place.legend(fontsize=8)
    return figure
