"""Benchmarks of Search against plain SQL with the best query plan, on a large store.

One call at a time. Searches by time are compared with SQL that fetches the same page: the fifty
newest matches, and one more to detect another page. Searches by relevance are compared with SQL
that fetches the ranked set, the 500 newest matches. For each kind of search all plans are measured,
and the best one counts.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import asyncpg
import grpc

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.search import compile_search as for_postgres
from sagastore_server.search.parser import parse_query
from sagastore_server.sqlite.connection import READER_CACHE_KIB
from sagastore_server.sqlite.search import Compiled
from sagastore_server.sqlite.search import compile_search as for_sqlite
from sagastore_server.storage.query import Criteria, Scan
from tools.benchmarks.harness import Bench
from tools.benchmarks.large_stores import NAME, Stores, copied, stores
from tools.benchmarks.messages import RARE_EVERY, items, rare_word
from tools.benchmarks.results import Row, at_most, percentile, ratios
from tools.benchmarks.servers import ours

PAGE = 50
WINDOW = 500
"""Number of newest matches that a search by relevance ranks."""

_ORDERS = {"newest first": storage_pb2.ORDER_NEWEST, "by relevance": storage_pb2.ORDER_RELEVANCE}
_PLANS = (
    "",
    "enable_bitmapscan",
    "enable_indexscan",
    "enable_bitmapscan enable_seqscan enable_sort",
)
"""Planner settings to disable: none, those for lookups by word, those for ordered scans, and all
except ordered scans. PostgreSQL chooses ordered scans for the same search on some days but not on
others.
"""


class Kind(NamedTuple):
    """Kind of search; its forms are used in turn."""

    name: str
    forms: list[storage_pb2.SearchRequest]


def search_sqlite(bench: Bench) -> list[Row]:
    """Measure searches on SQLite."""
    made = stores(bench)
    with copied(bench, made.alone) as file, ours(file) as server:
        return _rows(bench, "search-sqlite", made, server.address, _SQLite(file))


def search_postgres(bench: Bench) -> list[Row]:
    """Measure searches on PostgreSQL."""
    made = stores(bench)
    with (
        bench.postgres.database(made.alone_database) as dsn,
        ours(postgres=dsn) as server,
    ):
        return _rows(bench, "search-postgres", made, server.address, _PostgreSQL(dsn))


def kinds(made: Stores) -> list[Kind]:
    """Return the kinds of searches, in forms that have matches."""
    rare = [rare_word(number) for number in range(0, made.rows, RARE_EVERY)]
    middle = next(items(NAME, made.rows // 2, 1)).timestamp
    return [
        Kind("rare word", [_asking(word) for word in rare[:20]]),
        Kind("common word", [_asking("you"), _asking("restaurant"), _asking("like")]),
        Kind("prefix", [_asking("rest*"), _asking("conf*"), _asking("mov*")]),
        Kind("tag and time", [_filtering(middle, days) for days in range(5)]),
    ]


def _asking(query: str) -> storage_pb2.SearchRequest:
    return storage_pb2.SearchRequest(query=query, page_size=PAGE)


def _filtering(middle: datetime, days: int) -> storage_pb2.SearchRequest:
    request = storage_pb2.SearchRequest(tags=["restaurants"], page_size=PAGE)
    request.start_time.FromDatetime(middle - timedelta(days=1 + days))
    request.end_time.FromDatetime(middle + timedelta(days=1 + days))
    return request


def _criteria(request: storage_pb2.SearchRequest) -> Criteria:
    def moment(value: Any) -> int | None:
        return int(value.ToMicroseconds()) or None

    text = parse_query(request.query) if request.query else None
    start, end = moment(request.start_time), moment(request.end_time)
    return Criteria(text, tuple(request.tags), start=start, end=end)


PLAN_TIMEOUT = 5.0
"""Seconds for one search after which a plan is abandoned, because another one is better."""

_STEPS = 100_000
"""SQLite VM instructions between two checks of the clock."""


class _Bare(Protocol):
    """Fetches the newest matches with plain SQL."""

    plans: tuple[str, ...]

    def times(self, plan: str, asked: list[Criteria], wanted: int) -> list[float]:
        """Return the seconds of each search with this plan; empty if too slow or unavailable."""


class _SQLite:
    """Plain statements on the file, with sqlite3."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.plans: tuple[str, ...] = ("a block", "look up")

    def times(self, plan: str, asked: list[Criteria], wanted: int) -> list[float]:
        """Return the seconds of each search with this plan; empty if too slow or unavailable."""
        uri = f"{self._file.as_uri()}?mode=ro"
        taken = []
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
            (rows,) = connection.execute("SELECT max(number) FROM messages").fetchone()
            for criteria in asked:
                compiled = for_sqlite(criteria, Scan(True, wanted))
                # The block has the ideal size, because hand-written SQL may use knowledge of the
                # data.
                sizes = _sizes(wanted, rows) if plan == "a block" else [0]
                seconds = next(
                    filter(None, (_seconds(connection, compiled, n) for n in sizes)), 0.0
                )
                if not seconds:
                    return []
                taken.append(seconds)
        return taken


def _sizes(wanted: int, rows: int) -> list[int]:
    return [wanted * 2**n for n in range(1, 30) if wanted * 2**n < 2 * rows]


def _seconds(connection: sqlite3.Connection, compiled: Compiled, block: int) -> float:
    """Return the seconds of a search; 0: the block is too small, or it takes too long."""
    sql, parameters = compiled.of_block(block) if block else compiled.whole
    began = time.perf_counter()
    connection.set_progress_handler(_after(began + PLAN_TIMEOUT), _STEPS)
    try:
        found = connection.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError:
        return 0.0
    seconds = time.perf_counter() - began
    full = not block or len(found) == parameters[-1] or found[0][-1] < block
    return seconds if full else 0.0


def _after(moment: float) -> Callable[[], bool]:
    """Return a function that interrupts a statement after ``moment``."""
    return lambda: time.perf_counter() > moment


class _PostgreSQL:
    """Plain statements on the database, with asyncpg."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.plans: tuple[str, ...] = _PLANS

    def times(self, plan: str, asked: list[Criteria], wanted: int) -> list[float]:
        """Return the seconds of each search with the settings of ``plan`` disabled."""
        return asyncio.run(self._times(plan, asked, wanted))

    async def _times(self, plan: str, asked: list[Criteria], wanted: int) -> list[float]:
        pool = Pool(
            PostgreSQLOptions(self._dsn, pool_min=1, pool_max=2, statement_timeout=PLAN_TIMEOUT)
        )
        await pool.open()
        taken = []
        try:
            async with pool.connection() as connection:
                for setting in plan.split():
                    await connection.execute(f"SET {setting} = off")
                for criteria in asked:
                    began = time.perf_counter()
                    try:
                        await _fetched(connection, criteria, wanted)
                    except asyncpg.QueryCanceledError:
                        return []
                    taken.append(time.perf_counter() - began)
        finally:
            await pool.close()
        return taken


async def _fetched(connection: Connection, criteria: Criteria, wanted: int) -> None:
    sql, parameters = for_postgres(criteria, Scan(True, wanted))
    statement = await connection.prepare(sql, name="")
    await statement.fetch(*parameters)


def _rows(bench: Bench, name: str, made: Stores, address: str, bare: _Bare) -> list[Row]:
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        ask = StorageServiceStub(channel).Search
        row = _RowOf(bench, ask, bare)
        return [
            row.measure(name, made.rows, kind, order) for kind in kinds(made) for order in _ORDERS
        ]


class _RowOf:
    """Measures searches through the service and with plain SQL."""

    def __init__(self, bench: Bench, ask: Callable[..., Any], bare: _Bare) -> None:
        self._bench = bench
        self._ask = ask
        self._bare = bare

    def measure(self, name: str, stored: int, kind: Kind, order: str) -> Row:
        """Return the row of one kind of search."""
        bench = self._bench
        times = max(len(kind.forms), bench.sizes.searches // bench.sizes.rounds)
        asked = list(itertools.islice(itertools.cycle(kind.forms), times))
        criteria = [_criteria(request) for request in asked]
        # Without words there is nothing to rank.
        wanted = WINDOW if order == "by relevance" and kind.forms[0].query else PAGE
        plan = self._best_plan(criteria[: len(kind.forms)], wanted)
        sides: dict[str, list[float]] = {"Search": [], "bare SQL": [], "echo call": []}
        most = 0
        for number in range(bench.sizes.rounds + 1):
            taken, found = self._searched(asked if number else kind.forms, order)
            most = max(most, found)
            if number:
                both = (taken, self._bare.times(plan, criteria, wanted), self._echoed(times))
                for side, seconds in zip(sides, both, strict=True):
                    sides[side].append(percentile(seconds, 0.95) * 1000)
        mine, best, _ = sides.values()
        bench.say(f"{kind.name}, {order}: {min(mine):.1f} ms, bare {min(best):.1f} ms")
        without = f"without {plan}" if plan.startswith("enable") else plan or "as planned"
        return Row(
            name,
            f"Search p95 at {stored:,} messages, first page, {kind.name}, {order} ÷ bare SQL",
            ratios(mine, best),
            at_most(3),
            sides,
            "ms",
            (f"{times} searches per round, up to {most} results", f"best plan: {without}"),
            "" if most else "no matches",
        )

    def _searched(
        self, asked: list[storage_pb2.SearchRequest], order: str
    ) -> tuple[list[float], int]:
        taken, most = [], 0
        for request in asked:
            ordered = storage_pb2.SearchRequest()
            ordered.CopyFrom(request)
            ordered.order = _ORDERS[order]
            began = time.perf_counter()
            answer = self._ask(ordered)
            taken.append(time.perf_counter() - began)
            most = max(most, len(answer.results))
        return taken, most

    def _echoed(self, times: int) -> list[float]:
        taken = []
        with grpc.insecure_channel(self._bench.echo.address) as channel:
            call: Any = channel.unary_unary("/sagastore.bench.Echo/Save")
            call(b"")
            for _ in range(times):
                began = time.perf_counter()
                call(b"")
                taken.append(time.perf_counter() - began)
        return taken

    def _best_plan(self, asked: list[Criteria], wanted: int) -> str:
        """Return the plan with the lowest p95 over all forms."""
        known = {plan: self._bare.times(plan, asked, wanted) for plan in self._bare.plans}
        there = {plan: percentile(times, 0.95) for plan, times in known.items() if times}
        return min(there, key=lambda plan: there[plan])
