"""Benchmarks of Save and Get against the echo server and a hand-written server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from sagastore import Phase
from tools.benchmarks.bulk import fill
from tools.benchmarks.harness import WARM, Bench, Sample, Side, compared
from tools.benchmarks.messages import get_requests
from tools.benchmarks.results import Row, Target, at_least
from tools.benchmarks.servers import (
    Served,
    as_served,
    change_phases,
    journal_is_empty,
    ours,
    program,
)

IN_FLIGHT = (64, 128)
UNIT = "calls/s"
Processes = tuple[Served, *tuple[int, ...]]
"""Server and its helper processes."""


def save_sqlite(bench: Bench) -> list[Row]:
    """Measure Save on SQLite against the echo server and a hand-written aiosqlite server."""
    with ExitStack() as stack:
        file = stack.enter_context(bench.file())
        mine = as_served(stack.enter_context(ours(file)))
        other = stack.enter_context(bench.file())
        hand = stack.enter_context(program("handmade_server", "--sqlite", str(other)))
        label = ("save-sqlite", "Save on SQLite", 0.85)
        return _saves(bench, label, (mine,), (hand,))


def save_postgres(bench: Bench) -> list[Row]:
    """Measure Save on PostgreSQL against the echo server and a hand-written asyncpg server."""
    with ExitStack() as stack:
        database = bench.postgres
        mine = as_served(stack.enter_context(ours(postgres=_database(bench, stack))))
        dsn = _database(bench, stack)
        hand = stack.enter_context(program("handmade_server", "--postgres", dsn))
        label = ("save-postgres", "Save on PostgreSQL", 0.75)
        return _saves(bench, label, (mine, database.pid), (hand, database.pid))


def save_dual(bench: Bench) -> list[Row]:
    """Measure Save in DUAL_WRITE against SQLITE_ONLY and a sequential hand-written server."""
    with ExitStack() as stack:
        single = as_served(stack.enter_context(ours(stack.enter_context(bench.file()))))
        both = stack.enter_context(ours(stack.enter_context(bench.file()), _database(bench, stack)))
        change_phases(both.address, Phase.DUAL_WRITE)
        dual = as_served(both)
        other, dsn = stack.enter_context(bench.file()), _database(bench, stack)
        hand = stack.enter_context(
            program("handmade_server", "--sqlite", str(other), "--postgres", dsn)
        )
        following = bench.saves(dual, "dual", 64, bench.postgres.pid)
        lags: list[int] = []

        def followed(number: int) -> Sample:
            # The backlog of PostgreSQL must not affect the side that is measured next.
            sample = following(number)
            lags.append(journal_is_empty(dual.address))
            return sample

        found = bench.alternate(
            [
                Side("SQLITE_ONLY", bench.saves(single, "single", 64)),
                Side("DUAL_WRITE", followed),
                Side("by hand, both", bench.saves(hand, "by-hand", 64, bench.postgres.pid)),
                Side("echo", bench.saves(bench.echo, "echo", 64)),
            ]
        )
        lag = f"replication lag after the last call, in changes: up to {max(lags):,}"
    what = "Save in DUAL_WRITE"
    hand_made = "by hand, both"

    def row(label: str, over: str, under: str, target: Target | None = None) -> Row:
        notes = (lag,) if target else ()
        return compared("save-dual", label, found, (over, under), UNIT, target=target, notes=notes)

    return [
        row(f"{what} ÷ SQLITE_ONLY, 64 in flight", "DUAL_WRITE", "SQLITE_ONLY", at_least(0.85)),
        row(f"{what} ÷ echo, 64 in flight", "DUAL_WRITE", "echo"),
        row(f"{what} ÷ by hand, both", "DUAL_WRITE", hand_made),
        row("by hand, both ÷ echo", hand_made, "echo"),
    ]


def get_sqlite(bench: Bench) -> list[Row]:
    """Measure Get on SQLite against the echo server."""
    with bench.file() as file, ours(file) as server:
        return _gets(bench, "get-sqlite", "Get on SQLite", (as_served(server),))


def get_postgres(bench: Bench) -> list[Row]:
    """Measure Get on PostgreSQL against the echo server."""
    database = bench.postgres
    with database.database() as dsn, ours(postgres=dsn) as server:
        served = as_served(server)
        return _gets(bench, "get-postgres", "Get on PostgreSQL", (served, database.pid))


def _database(bench: Bench, stack: ExitStack) -> str:
    return stack.enter_context(bench.postgres.database())


def _saves(
    bench: Bench, label: tuple[str, str, float], mine: Processes, hand: Processes
) -> list[Row]:
    name, what, bound = label
    sides = []
    for in_flight in IN_FLIGHT:
        sides += [
            Side(f"echo, {in_flight}", bench.saves(bench.echo, "echo", in_flight)),
            Side(f"SagaStore, {in_flight}", _of(bench, mine, "ours", in_flight)),
        ]
    sides.append(Side("by hand, 64", _of(bench, hand, "by-hand", 64)))
    found = bench.alternate(sides)
    rows = [
        compared(
            name,
            f"{what} ÷ echo, {in_flight} in flight",
            found,
            (f"SagaStore, {in_flight}", f"echo, {in_flight}"),
            UNIT,
            target=at_least(bound),
        )
        for in_flight in IN_FLIGHT
    ]
    references = [
        (f"{what} ÷ by hand, 64 in flight", ("SagaStore, 64", "by hand, 64")),
        ("by hand ÷ echo, 64 in flight", ("by hand, 64", "echo, 64")),
    ]
    return rows + [compared(name, label, found, pair, UNIT) for label, pair in references]


def _of(bench: Bench, served: Processes, name: str, in_flight: int) -> Callable[[int], Sample]:
    server, *others = served
    return bench.saves(server, name, in_flight, *others)


def _gets(bench: Bench, name: str, what: str, mine: tuple[Served, *tuple[int, ...]]) -> list[Row]:
    server, *others = mine
    stored = bench.sizes.small
    fill(bench, server, "stored", stored)

    def get(number: int) -> Sample:
        count = bench.sizes.calls if number else bench.sizes.calls // WARM
        requests = get_requests("stored", stored, count)
        return bench.calls(server, "Get", requests, 64, *others)[0]

    found = bench.alternate(
        [Side("echo", bench.saves(bench.echo, "echo", 64)), Side("SagaStore", get)]
    )
    note = f"of {stored:,} messages; the echo's call is a Save, as for the rows above"
    return [
        compared(
            name,
            f"{what} ÷ echo, 64 in flight",
            found,
            ("SagaStore", "echo"),
            UNIT,
            target=at_least(0.85),
            notes=(note,),
        )
    ]
