"""Pictures: throughput and latency over calls in flight, throughput over stored messages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.bench import Bench
from benchmarks.bulk import fill
from benchmarks.messages import get_requests, save_requests
from benchmarks.model import Row, percentile
from benchmarks.servers import Served, as_served, ours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
STEPS = 6
"""Sizes of the store at which calls are measured, from the small one to the large one."""
_FEWEST = 300
"""Calls of a point at least."""


class Point(NamedTuple):
    """What one number of calls in flight came to."""

    in_flight: int
    rate: float
    latencies: dict[str, float]
    """Milliseconds, by percentile."""
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
    sizes = _steps(bench.sizes.small, bench.sizes.scale)
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        file = stack.enter_context(bench.file())
        sqlite = stack.enter_context(ours(file))
        _grow(bench, as_served(sqlite), "SQLite", sizes, found)
        sqlite.terminate()
        dsn = stack.enter_context(bench.postgres.database())
        postgres = as_served(stack.enter_context(ours(postgres=dsn)))
        _grow(bench, postgres, "PostgreSQL", sizes, found)
    path = bench.folder / "stored.png"
    _draw_rows(sizes, found).savefig(path)
    what = f"calls/s, messages/s with {', '.join(f'{size:,}' for size in sizes)} stored"
    return [Row("plot-rows", what, [], None, found, "", (str(path),))]


def _point(bench: Bench, server: Served, method: str, in_flight: int) -> Point:
    # Few calls at a time are slow ones: a point takes a few seconds at most.
    count = min(bench.sizes.calls, max(_FEWEST, bench.sizes.calls * in_flight // 64))
    if method == "Get":
        requests = get_requests("stored", bench.sizes.small, count)
    else:
        requests = save_requests(f"plot-{in_flight}", 0, count)
    load = bench.generator.send(server.address, method, requests, in_flight)
    latencies = {name: percentile(load.latencies, share) * 1000 for share, name in SHARES}
    return Point(in_flight, load.rate, latencies, sum(load.failures.values()))


def _steps(small: int, large: int) -> list[int]:
    """Return sizes that grow by the same factor."""
    factor = (large / small) ** (1 / (STEPS - 1))
    return [round(small * factor**number) for number in range(STEPS)]


def _grow(
    bench: Bench, server: Served, where: str, sizes: Sequence[int], found: dict[str, list[float]]
) -> None:
    """Fill a store step by step, and measure at each."""
    stored, count = 0, bench.sizes.calls // 2
    for size in sizes:
        name = f"grown-{size}"
        new = size - stored
        rate = fill(bench, server, name, new).value
        saves = save_requests(f"at-{size}", 0, count)
        gets = get_requests(name, new, count)
        measured = {
            f"BulkSave, {where}": rate,
            f"Save, {where}": bench.calls(server, "Save", saves, 64)[0].value,
            f"Get, {where}": bench.calls(server, "Get", gets, 64)[0].value,
        }
        stored = size + count
        for what, value in measured.items():
            found.setdefault(what, []).append(value)
        bench.say(f"{where}, {size:,} stored: BulkSave {rate:,.0f}")


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
