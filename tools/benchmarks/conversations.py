"""Benchmarks of ListSessions: a page of sessions must not cost more than a page of messages.

The store has many sessions of one message and one session of many. Both lists are read page by page
by one client, one call at a time, alternating in each round.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from sagastore.v1 import message_pb2, session_pb2, storage_pb2
from sagastore.v1.session_pb2_grpc import SessionServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.server_process import ServerProcess
from tools.benchmarks.harness import Bench
from tools.benchmarks.results import Row, at_most, percentile, ratios
from tools.benchmarks.servers import ours

PAGE = 50
SESSIONS_PER_ROW = 10
"""The store has this share of the rows of a large store in sessions: 100,000 of 1,000,000."""

LONG = "one long session"
LONG_MESSAGES = 5_000
_BATCH = 1000
_FIRST = 1_700_000_000
"""Time of the first message, in seconds since 1970."""

Ask = Callable[[], Any]


def sessions_sqlite(bench: Bench) -> list[Row]:
    """Measure lists on SQLite."""
    path = bench.folder / "sessions.db"
    path.unlink(missing_ok=True)
    with ours(path) as server:
        return [_row(bench, "sessions-sqlite", server)]


def sessions_postgres(bench: Bench) -> list[Row]:
    """Measure lists on PostgreSQL."""
    with bench.postgres.database() as dsn, ours(postgres=dsn) as server:
        return [_row(bench, "sessions-postgres", server)]


def _row(bench: Bench, name: str, server: ServerProcess) -> Row:
    count = max(PAGE, bench.sizes.scale // SESSIONS_PER_ROW)
    with grpc.insecure_channel(server.address) as channel:
        _fill(StorageServiceStub(channel), count)
        sessions, messages = _sessions(channel), _messages(channel)
        sides: dict[str, list[float]] = {"ListSessions": [], "List": []}
        for number in range(bench.sizes.rounds + 1):
            for side, ask in zip(sides, (sessions, messages), strict=True):
                taken = percentile(_timed(ask, bench.sizes.searches), 0.5) * 1000
                if number:
                    sides[side].append(taken)
    return Row(
        name,
        f"ListSessions of {PAGE} among {count:,} sessions ÷ List of {PAGE} messages, median",
        ratios(*sides.values()),
        at_most(1.0),
        sides,
        "ms",
        (f"{bench.sizes.searches} pages of each per round",),
    )


def _fill(storage: StorageServiceStub, count: int) -> None:
    numbered = itertools.chain(
        ((number, f"session {number}") for number in range(count)),
        ((number, LONG) for number in range(LONG_MESSAGES)),
    )
    batches = (
        storage_pb2.BulkSaveRequest(messages=[_message(*one) for one in some])
        for some in _some(numbered)
    )
    stored = sum(answer.saved for answer in storage.BulkSave(batches))
    if stored != count + LONG_MESSAGES:
        raise RuntimeError(f"only {stored:,} messages were stored")


def _some(numbered: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while some := list(itertools.islice(numbered, _BATCH)):
        yield some


def _message(number: int, session_id: str) -> message_pb2.Message:
    return message_pb2.Message(
        id=f"{session_id}/{number}",
        provider="openai",
        role="user",
        content=f"What do you know about subject {number}, and who told you?",
        timestamp=Timestamp(seconds=_FIRST + number),
        session_id=session_id,
    )


def _sessions(channel: grpc.Channel) -> Ask:
    """Return a call that reads the next page of sessions, and begins again at the end."""
    stub, request = SessionServiceStub(channel), session_pb2.ListSessionsRequest(page_size=PAGE)

    def ask() -> None:
        answer = stub.ListSessions(request)
        request.page_token = answer.next_page_token

    return ask


def _messages(channel: grpc.Channel) -> Ask:
    """Return a call that reads the next page of the long session."""
    stub = StorageServiceStub(channel)
    request = storage_pb2.ListRequest(session_id=LONG, page_size=PAGE, newest_first=True)

    def ask() -> None:
        answer = stub.List(request)
        request.page_token = answer.next_page_token

    return ask


def _timed(ask: Ask, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return taken
