"""Benchmarks at a million messages: throughput, memory, and startup."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from tests.support.server_process import ServerProcess
from tools.benchmarks.bulk import bare, bulk_count, fill
from tools.benchmarks.harness import WARM, Bench, Sample, Side, compared
from tools.benchmarks.large_stores import NAME, copied, stores
from tools.benchmarks.messages import get_requests, save_requests
from tools.benchmarks.results import Row, at_least, at_most
from tools.benchmarks.servers import Served, as_served, copy_store, ours

_START_SECONDS = 60.0


def memory(bench: Bench) -> list[Row]:
    """Recreate the large stores and report the memory usage."""
    made = stores(bench, recreate=True)
    rows = []
    for who in ("server", "client"):
        seen = {what: peak for what, (peak, _) in made.memory.items() if what.endswith(who)}
        growth = max(made.memory[what][1] for what in seen)
        rows.append(
            Row(
                "memory",
                f"resident memory of the {who} and its child processes, while "
                f"{made.rows:,} messages are imported, backfilled, exported",
                [max(seen.values())],
                at_most(250, "MiB"),
                {what: [peak] for what, peak in seen.items()},
                "MiB",
                (f"peak growth from first to second half: at most {growth:.0f} MiB",),
            )
        )
    rates = {what: [made.rows / seconds] for what, seconds in made.seconds.items()}
    rows.append(Row("memory", "throughput of these steps", [], None, rates, "messages/s"))
    return rows


def scale_sqlite(bench: Bench) -> list[Row]:
    """Measure the throughput on a large SQLite file against a small one."""
    made = stores(bench)
    with ExitStack() as stack:
        file, other = [stack.enter_context(copied(bench, made.alone)) for _ in range(2)]
        large = as_served(stack.enter_context(ours(file)))
        template = stack.enter_context(bench.file())
        with ours(template) as server:
            fill(bench, as_served(server), NAME, bench.sizes.small)

        @contextmanager
        def small() -> Iterator[Served]:
            with bench.file() as target, ours(copy_store(template, target)) as server:
                yield as_served(server)

        def loop_at_small(number: int) -> Sample:
            with bench.file() as target:
                return _loop(bench, copy_store(template, target), number)

        def loop_at_large(number: int) -> Sample:
            return _loop(bench, other, number)

        loop = loop_at_large, loop_at_small
        return _throughput(bench, ("scale-sqlite", "on SQLite"), large, small, loop)


def scale_postgres(bench: Bench) -> list[Row]:
    """Measure the throughput on a large PostgreSQL database against a small one."""
    made, postgres = stores(bench), bench.postgres
    with ExitStack() as stack:
        dsn = stack.enter_context(postgres.database(made.alone_database))
        large = as_served(stack.enter_context(ours(postgres=dsn)))
        template = postgres.create()
        stack.callback(postgres.drop, template)
        with ours(postgres=postgres.dsn_of(template)) as server:
            fill(bench, as_served(server), NAME, bench.sizes.small)

        @contextmanager
        def small() -> Iterator[Served]:
            with postgres.database(template) as dsn, ours(postgres=dsn) as server:
                yield as_served(server)

        return _throughput(bench, ("scale-postgres", "on PostgreSQL"), large, small)


def start(bench: Bench) -> list[Row]:
    """Measure the time from the start of a server to SERVING."""
    made = stores(bench)
    large: list[float] = []
    empty: list[float] = []
    with copied(bench, made.alone) as file, bench.file() as none:
        for number in range(bench.sizes.rounds + 1):
            for path, found in ((file, large), (none, empty)):
                seconds = _seconds_to_serve(path)
                if number:
                    found.append(seconds)
                    bench.say(
                        f"round {number}: {path.stat().st_size / 1e6:,.0f} MB: {seconds:.2f} s"
                    )
    return [
        Row(
            "start",
            f"server start on a file of {made.rows:,} messages, to SERVING",
            large,
            at_most(1.0, "s"),
            {"the large file": large, "an empty file": empty},
            "s",
        )
    ]


def _seconds_to_serve(path: Path) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = ServerProcess(path)
    server.address = address
    began = time.perf_counter()
    try:
        server.spawn()
        _wait_until_serving(address, began + _START_SECONDS)
        seconds = time.perf_counter() - began
        server.terminate()
        return seconds
    finally:
        server.close()


def _wait_until_serving(address: str, until: float) -> None:
    """Wait for the port, then for the health service, which reports each change."""
    host, port = address.split(":")
    while time.perf_counter() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            break
        except OSError:
            time.sleep(0.002)
    with grpc.insecure_channel(address) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=_START_SECONDS
        )
        for answer in watching:
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                watching.cancel()
                return


Measure = Callable[[Served, int, int], Sample]
Pair = tuple[Callable[[int], Sample], Callable[[int], Sample]]
"""Functions that measure a large and a small store, called with the number of the round."""

_LOOP = "bare executemany"


def _throughput(
    bench: Bench,
    label: tuple[str, str],
    large: Served,
    small: Callable[[], AbstractContextManager[Served]],
    loop: Pair | None = None,
) -> list[Row]:
    """Compare the kinds of calls; the small store is new in each round.

    ``loop`` measures a driver loop on a large and a small store, to show the database's own share
    of the difference.
    """
    name, where = label
    rows, sizes = bench.sizes.scale, bench.sizes
    measures = {"Save": _save(bench), "Get": _get(bench), "BulkSave": _bulk(bench)}
    pairs: dict[str, Pair] = {}
    for kind, measure in measures.items():

        def at_large(number: int, measure: Measure = measure) -> Sample:
            return measure(large, number, rows)

        def at_small(number: int, measure: Measure = measure) -> Sample:
            with small() as served:
                # Its caches are as warm as those of the large store.
                measure(served, 0, sizes.small)
                return measure(served, number + 1, sizes.small)

        pairs[kind] = at_large, at_small
    if loop is not None:
        pairs[_LOOP] = loop
    sizes_of = ("large", "small")
    sides = [
        Side(f"{kind}, {size}", measure)
        for kind, pair in pairs.items()
        for size, measure in zip(sizes_of, pair, strict=True)
    ]
    found = bench.alternate(sides)
    return [
        compared(
            name,
            f"{kind} {where} at {rows:,} stored messages ÷ at {sizes.small:,}",
            found,
            (f"{kind}, large", f"{kind}, small"),
            "calls/s" if kind in {"Save", "Get"} else "messages/s",
            target=None if kind == _LOOP else at_least(0.9),
        )
        for kind in pairs
    ]


def _save(bench: Bench) -> Measure:
    def measure(server: Served, number: int, rows: int) -> Sample:
        count = bench.sizes.calls if number else bench.sizes.calls // WARM
        requests = save_requests(f"at-{rows}-{number}", 0, count)
        return bench.calls(server, "Save", requests, 64)[0]

    return measure


def _get(bench: Bench) -> Measure:
    def measure(server: Served, number: int, rows: int) -> Sample:
        count = bench.sizes.calls if number else bench.sizes.calls // WARM
        return bench.calls(server, "Get", get_requests(NAME, rows, count), 64)[0]

    return measure


def _loop(bench: Bench, file: Path, number: int) -> Sample:
    """Insert with a driver loop whose terms are computed in advance."""
    return bare(["bare_sqlite", str(file)], "before", f"loop-{number}", bulk_count(bench, number))


def _bulk(bench: Bench) -> Measure:
    def measure(server: Served, number: int, rows: int) -> Sample:
        return fill(bench, server, f"bulk-at-{rows}-{number}", bulk_count(bench, number))

    return measure
