"""Breakdown of the time of a Save and of a Get.

    python -m tools.benchmarks.breakdown

By thread: CPU time and scheduling delay of each server thread per call, from the kernel's counters
(``/proc/PID/task/TID/schedstat``), compared with the echo server and with the client. By step: the
cost of a group of saves in SQLite's writer alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.connection import writer_connection
from sagastore_server.sqlite.files import register_owner_function
from sagastore_server.sqlite.index_terms import fts_columns
from sagastore_server.sqlite.queries import QUERIES, insert_all
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.model import Message
from tools.benchmarks.load import Generator
from tools.benchmarks.messages import Request, get_requests, save_requests, stored_messages
from tools.benchmarks.servers import Served, as_served, ours, program

CALLS = 10_000
IN_FLIGHT = 64
GROUPS = (1, 20, 1000)
"""Saves per group: a single one, the typical group at 64 in flight, a batch of BulkSave."""


class _Thread(NamedTuple):
    name: str
    ran: int
    """Nanoseconds."""
    waited: int
    """Nanoseconds in which it was runnable but not running."""


def _threads(pid: int) -> dict[str, _Thread]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        ran, waited, _ = (task / "schedstat").read_text().split()
        name = (task / "comm").read_text().strip()
        kind = "event loop" if task.name == str(pid) else name
        found[task.name] = _Thread(kind, int(ran), int(waited))
    return found


def _by_thread(
    generator: Generator, server: Served, method: str, warm: list[Request], requests: list[Request]
) -> None:
    generator.send(server.address, method, warm, IN_FLIGHT)
    before = _threads(server.pid)
    done = generator.send(server.address, method, requests, IN_FLIGHT)
    nothing = _Thread("", 0, 0)
    sys.stdout.write(f"{method}: {done.rate:,.0f} calls/s\n")
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    busiest = ""
    for number, thread in _threads(server.pid).items():
        former = before.get(number, nothing)
        ran, waited = (thread.ran - former.ran) / 1000, (thread.waited - former.waited) / 1000
        sums[thread.name][0] += ran / CALLS
        sums[thread.name][1] += waited / CALLS
        if thread.name != "event loop" and ran / CALLS > 60:
            busiest = f"  (the busiest of the others: {ran / CALLS:.0f} us, SQLite's)\n"
    for name, (ran, waited) in sorted(sums.items(), key=lambda one: -one[1][0]):
        if ran >= 1:
            sys.stdout.write(
                f"  {name:16}{ran:6.0f} us per call, waits {waited:4.0f} us for a core\n"
            )
    sys.stdout.write(busiest)
    sys.stdout.write(f"  {'client':16}{done.processor / done.rate * 1e6:6.0f} us per call\n")


class _Steps:
    """Sums the durations of steps."""

    def __init__(self) -> None:
        self.took: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began, used = time.perf_counter(), time.thread_time()
        yield
        passed, ran = self.took.get(name, (0.0, 0.0))
        self.took[name] = (
            passed + time.perf_counter() - began,
            ran + time.thread_time() - used,
        )


def _by_step(folder: Path, size: int) -> None:
    """Execute the writer's steps for groups of ``size``, one by one."""
    path = folder / f"{size}.db"
    asyncio.run(_make(path))
    messages = stored_messages(f"steps-{size}", 0, 6_000 if size > 1 else 600)
    warm = len(messages) // 6
    with closing(writer_connection(path)) as connection:
        register_owner_function(connection)
        steps = _Steps()
        for start in range(0, len(messages), size):
            if start >= warm > start - size:
                steps = _Steps()
            group = messages[start : start + size]
            with steps.step("read stored rows"):
                connection.execute("BEGIN IMMEDIATE")
                ids = json.dumps([one.id for one in group])
                connection.execute(QUERIES["batch_get"], (ids,)).fetchall()
            with steps.step("compute terms (Python)"):
                terms = [fts_columns(one.content, one.tags, one.metadata) for one in group]
            with steps.step("insert rows"):
                rows = [_row(one, start + at) for at, one in enumerate(group, 1)]
                insert_all(connection, "insert", rows)
            with steps.step("insert terms"):
                insert_all(
                    connection, "index", [(start + at, *one) for at, one in enumerate(terms, 1)]
                )
            with steps.step("commit, synced"):
                connection.execute(QUERIES["set_state"], ("revision", start + size))
                connection.execute("COMMIT")
    count = len(messages) - warm
    sys.stdout.write(f"SQLite's writer alone, groups of {size:,}, per save:\n")
    for name, (passed, ran) in steps.took.items():
        sys.stdout.write(
            f"  {name:22}{passed / count * 1e6:7.1f} us, {ran / count * 1e6:6.1f} CPU time\n"
        )
    total = sum(passed for passed, _ in steps.took.values()) / count
    sys.stdout.write(f"  {'together':22}{total * 1e6:7.1f} us\n")


def _row(message: Message, number: int) -> tuple[object, ...]:
    return (*message[:4], canonical_tags(message.tags), *message[5:10], number)


async def _make(path: Path) -> None:
    store = SQLiteStorage(path)
    await store.open()
    await store.close()


def main() -> None:
    """Measure and print."""
    build = Path(__file__).parents[2] / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as name:
        folder = Path(name)
        generator = Generator(folder)
        sys.stdout.write(f"{os.cpu_count()} cores; load generator: {generator.name}\n")
        warm, saves = save_requests("warm", 0, 2_000), save_requests("calls", 0, CALLS)
        gets = get_requests("calls", CALLS, CALLS)
        with program("echo_server") as echo:
            _by_thread(generator, echo, "Echo", warm, saves)
        with ours(folder / "a.db") as server:
            _by_thread(generator, as_served(server), "Save", warm, saves)
            _by_thread(generator, as_served(server), "Get", gets[:2_000], gets)
        for size in GROUPS:
            _by_step(folder, size)


if __name__ == "__main__":
    main()
