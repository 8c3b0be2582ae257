"""Benchmarks of BulkSave against plain driver loops into the same schema."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tools.benchmarks.bulk_client import write_frames
from tools.benchmarks.harness import WARM, Bench, Sample, Side, compared
from tools.benchmarks.messages import batches
from tools.benchmarks.results import Row, at_least
from tools.benchmarks.servers import ROOT, Processor, Served, as_served, ours

UNIT = "messages/s"
TERMS = ("inside", "before")
"""Whether the search terms are computed inside the measured loop or before it."""


def bulk_sqlite(bench: Bench) -> list[Row]:
    """Measure BulkSave into SQLite against a loop of ``executemany``."""
    with ExitStack() as stack:
        mine = as_served(stack.enter_context(ours(stack.enter_context(bench.file()))))
        files = [stack.enter_context(bench.file()) for _ in TERMS]
        loops = [["bare_sqlite", str(file)] for file in files]
        label = ("bulk-sqlite", "BulkSave into SQLite ÷ bare executemany")
        return _rows(bench, label, mine, loops)


def bulk_postgres(bench: Bench) -> list[Row]:
    """Measure BulkSave into PostgreSQL with all indexes against a loop of COPY."""
    with ExitStack() as stack:
        database = bench.postgres
        mine, *bare = [stack.enter_context(database.database()) for _ in range(3)]
        server = as_served(stack.enter_context(ours(postgres=mine)))
        loops = [["bare_postgres", dsn] for dsn in bare]
        label = ("bulk-postgres", "BulkSave into PostgreSQL ÷ bare COPY")
        return _rows(bench, label, server, loops, database.pid)


def fill(bench: Bench, server: Served, name: str, count: int, *others: int) -> Sample:
    """Save new messages by BulkSave and return the throughput."""
    with bench.file(".frames") as frames:
        write_frames(frames, batches(name, 0, count))
        taken = Processor(server.pid, *others)
        result = _run("bulk_client", server.address, str(frames))
        share = taken.seconds() / result["seconds"]
    if result["saved"] != count:
        raise RuntimeError(f"{count} messages were sent, {result['saved']} of them saved")
    return Sample(count / result["seconds"], share, f"client: {result['processor']:.1f} cores")


def _rows(
    bench: Bench, label: tuple[str, str], mine: Served, loops: Sequence[list[str]], *others: int
) -> list[Row]:
    name, what = label
    sides = [Side("SagaStore", _bulk(bench, mine, others))]
    for terms, loop in zip(TERMS, loops, strict=True):
        sides.append(Side(f"bare, terms {terms}", _bare(bench, loop, terms)))
    sides.append(Side("sink", _bulk_sink(bench)))
    found = bench.alternate(sides)
    sunk = min(sample.value for sample in found.pop("sink"))
    note = f"upper bound of the client, against a server that stores nothing: {sunk:,.0f} {UNIT}"
    result = {
        "inside": "terms computed in the loop",
        "before": "terms computed in advance",
    }
    return [
        compared(
            name,
            f"{what}, {result[terms]}",
            {side: _without_notes(samples, terms) for side, samples in found.items()},
            ("SagaStore", f"bare, terms {terms}"),
            UNIT,
            target=at_least(0.9),
            notes=(note,) if terms == "inside" else (),
        )
        for terms in TERMS
    ]


def _without_notes(samples: list[Sample], terms: str) -> list[Sample]:
    """Report the client's load once instead of in each round and row."""
    if terms != "inside" or not samples[0].note:
        return [sample._replace(note="") for sample in samples]
    return [samples[0], *(sample._replace(note="") for sample in samples[1:])]


def bulk_count(bench: Bench, number: int) -> int:
    """Return the number of messages in the load of round ``number``."""
    return bench.sizes.bulk if number else max(1000, bench.sizes.bulk // WARM)


def _bulk(bench: Bench, server: Served, others: tuple[int, ...]) -> Callable[[int], Sample]:
    def measure(number: int) -> Sample:
        return fill(bench, server, f"bulk-{number}", bulk_count(bench, number), *others)

    return measure


def _bulk_sink(bench: Bench) -> Callable[[int], Sample]:
    def measure(number: int) -> Sample:
        count = bulk_count(bench, number)
        with bench.file(".frames") as frames:
            write_frames(frames, batches(f"bulk-{number}", 0, count))
            result = _run("bulk_client", bench.echo.address, str(frames))
        return Sample(count / result["seconds"])

    return measure


def _bare(bench: Bench, loop: list[str], terms: str) -> Callable[[int], Sample]:
    return lambda number: bare(loop, terms, f"bulk-{number}", bulk_count(bench, number))


def bare(loop: list[str], terms: str, name: str, count: int) -> Sample:
    """Insert new messages with a plain driver loop and return the throughput."""
    result = _run(*loop, terms, name, str(count))
    return Sample(count / result["seconds"])


def _run(module: str, *options: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", f"tools.benchmarks.{module}", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result
