"""Command line of the benchmarks (``make bench``): measures every target of the performance page.

    python -m tools.benchmarks [NAME ...] [--visits N] [--rounds N] [--scale ROWS] [--folder DIR]

Names are those of ``ROWS``, or ``quick`` for a short run that only shows that everything works.
Both sides of each ratio are measured in one run, alternating. All benchmarks run one after the
other, and then again, so that the spread contains the drift of a shared machine over a quarter of
an hour. Exit status 1 if a target was missed, 2 for an unknown name.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tools.benchmarks import (
    bulk,
    calls,
    conversations,
    migrations,
    plots,
    report,
    scale,
    searches,
    workers,
)
from tools.benchmarks.harness import QUICK, Bench, CallsFailedError, Sizes
from tools.benchmarks.load import LoadError
from tools.benchmarks.results import Row, merged

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bench"

ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "save-sqlite": calls.save_sqlite,
    "save-postgres": calls.save_postgres,
    "save-dual": calls.save_dual,
    "get-sqlite": calls.get_sqlite,
    "get-postgres": calls.get_postgres,
    "workers": workers.workers,
    "bulk-sqlite": bulk.bulk_sqlite,
    "bulk-postgres": bulk.bulk_postgres,
    "pgloader": migrations.against_pgloader,
    "memory": scale.memory,
    "backfill-latency": migrations.backfill_latency,
    "switch-pause": migrations.switch_pause,
    "scale-sqlite": scale.scale_sqlite,
    "scale-postgres": scale.scale_postgres,
    "search-sqlite": searches.search_sqlite,
    "search-postgres": searches.search_postgres,
    "sessions-sqlite": conversations.sessions_sqlite,
    "sessions-postgres": conversations.sessions_postgres,
    "start": scale.start,
    "plot-in-flight": plots.over_in_flight,
    "plot-rows": plots.over_rows,
}
"""All benchmarks, in the order of the table."""

ONCE = {"memory", "plot-in-flight", "plot-rows"}
"""Benchmarks that run once: large stores, which the others use, and the plots."""

_FAILURES = (CallsFailedError, LoadError, RuntimeError, AssertionError, OSError,
             subprocess.CalledProcessError)  # fmt: skip


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*ROWS, "quick"]))
    parser.add_argument("--visits", type=int, help=f"visits per benchmark ({Sizes().visits})")
    parser.add_argument("--rounds", type=int, help=f"measured rounds per visit ({Sizes().rounds})")
    parser.add_argument("--scale", type=int, help=f"rows of a large store ({Sizes().scale:,})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for stores and results")
    parser.add_argument("--python", action="store_true", help="use Python clients instead of ghz")
    given = parser.parse_intermixed_args()
    unknown = [name for name in given.names if name not in {*ROWS, "quick"}]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]}; choose from {', '.join([*ROWS, 'quick'])}")
    return given


def _sizes(given: argparse.Namespace) -> Sizes:
    sizes = QUICK if "quick" in given.names else Sizes()
    changed = {"visits": given.visits, "rounds": given.rounds, "scale": given.scale}
    return sizes._replace(**{name: value for name, value in changed.items() if value})


def _measured(bench: Bench, name: str, console: Console) -> list[Row]:
    """Run one benchmark; an error becomes a missed row."""
    began = time.monotonic()
    console.print(f"[bold]{name}[/]")
    try:
        rows = ROWS[name](bench)
    except _FAILURES as exc:
        rows = [Row(name, "failed", [], None, {}, "", failure=str(exc) or repr(exc))]
    console.print(f"  {name}: {time.monotonic() - began:.0f} s", style="dim")
    return rows


def _visits(bench: Bench, names: list[str], console: Console) -> Iterator[Row]:
    """Run the benchmarks one after the other, as often as requested."""
    for visit in range(bench.sizes.visits):
        for name in names:
            if not visit or name not in ONCE:
                yield from _measured(bench, name, console)


def _table(found: Sequence[Row]) -> list[Row]:
    """Return one row per measurement, in the order of ``ROWS``."""
    visits: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        visits.setdefault((row.name, row.what), []).append(row)
    return [merged(rows) for rows in visits.values()]


def main() -> int:
    """Run the benchmarks, print the table, write the file, and return the exit status."""
    given = _parsed()
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    names = [name for name in given.names if name != "quick"] or list(ROWS)
    # SIGINT must stop all servers. A shell starts background processes with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    found: list[Row] = []
    began = time.monotonic()
    folder = given.folder.resolve()
    with ExitStack() as stack:
        bench = Bench(
            _sizes(given),
            folder,
            stack,
            lambda line: console.print(f"  {line}", style="dim"),
            python=given.python,
        )
        console.print(f"stores: {folder}; load generator: {bench.generator.name}")
        try:
            found.extend(_visits(bench, names, console))
        except KeyboardInterrupt:
            console.print("interrupted")
        about = report.environment(bench.load_description(), bench.postgres_description())
        about["seconds"] = round(time.monotonic() - began)
        about["sizes"] = bench.sizes._asdict()
    rows = _table(found)
    report.show(console, rows)
    console.print(about["load"])
    report.write(folder / "bench.json", rows, about)
    console.print(f"{time.monotonic() - began:.0f} s total; results: {folder / 'bench.json'}")
    return int(any(row.verdict == "missed" for row in rows) or len(rows) == 0)


if __name__ == "__main__":
    sys.exit(main())
