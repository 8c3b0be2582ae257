"""Comparison of two checkouts of the code.

    git worktree add ../before main
    python -m tools.benchmarks.compare_trees Save ../before .
    python -m tools.benchmarks.compare_trees Get ../before . --store postgres --in-flight 64

One server of each tree runs, and an echo server; each round sends the same calls to each of them,
in alternating order. The output is calls per second, CPU time of the server per call (including
PostgreSQL if that is the store), and calls per second relative to the echo server, as median and
spread. Client, messages and environment are those of the current tree.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.server_process import ServerProcess
from tools.benchmarks.harness import QUICK, Bench, Sample
from tools.benchmarks.messages import get_requests, save_requests
from tools.benchmarks.servers import ROOT, Served, as_served


class _Figures:
    """Measurements of one server, per round."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rates: list[float] = []
        self.shares: list[float] = []
        self.processor: list[float] = []

    def add(self, found: Sample, echo: Sample) -> None:
        self.rates.append(found.value)
        self.shares.append(found.value / echo.value)
        self.processor.append(found.processor / found.value * 1e6)

    def __str__(self) -> str:
        rate, share, used = map(_spread, (self.rates, self.shares, self.processor))
        return f"{self.name:24}{rate:>26} calls/s{used:>22} us per call{share:>24} of the echo"


def _spread(values: Sequence[float]) -> str:
    digits = 2 if max(values) < 10 else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


@contextmanager
def _served(tree: Path, folder: Path, dsn: str | None) -> Iterator[Served]:
    """Run the server of a tree with its defaults."""
    paths = os.pathsep.join(str(tree.resolve() / part) for part in ("server", "client"))
    folder.mkdir()
    server = ServerProcess(folder / "a.db", env={"PYTHONPATH": paths}, postgres=dsn)
    try:
        yield as_served(server.start())
        server.terminate()
    finally:
        server.close()


def _compare(bench: Bench, options: argparse.Namespace) -> list[_Figures]:
    with ExitStack() as stack:
        others: list[int] = []
        servers = []
        for number, tree in enumerate(options.trees):
            dsn = None
            if options.store == "postgres":
                dsn = stack.enter_context(bench.postgres.database())
                others = [bench.postgres.pid]
            folder = bench.folder / f"tree-{number}"
            served = stack.enter_context(_served(tree, folder, dsn))
            servers.append((_Figures(str(tree)), served))
        echo = _Figures("echo")
        for number in range(options.rounds + 1):
            saves = save_requests(f"round-{number}", 0, options.calls)
            gets = get_requests(f"round-{number}", options.calls, options.calls)
            base, _ = bench.calls(bench.echo, "Echo", saves, options.in_flight)
            if number:  # The first round is a warm-up.
                echo.add(base, base)
            for figures, server in servers if number % 2 else servers[::-1]:
                found, _ = bench.calls(server, "Save", saves, options.in_flight, *others)
                if options.method == "Get":
                    found, _ = bench.calls(server, "Get", gets, options.in_flight, *others)
                if number:
                    figures.add(found, base)
        return [echo, *(figures for figures, _ in servers)]


def main() -> None:
    """Compare the trees and print the result."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.compare_trees")
    parser.add_argument("method", choices=("Save", "Get"))
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts of the project")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--calls", type=int, default=6_000, help="calls per server and round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as name, ExitStack() as stack:
        bench = Bench(QUICK, Path(name), stack, lambda _: None)
        for figures in _compare(bench, options):
            sys.stdout.write(f"{figures}\n")


if __name__ == "__main__":
    main()
