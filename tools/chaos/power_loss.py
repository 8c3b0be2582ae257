"""Power-loss test: checks every possible disk state of a real server on a SQLite file.

    python -m tools.chaos.power_loss [--points N] [--seed N] [--seconds S] [--strict]

A server runs under strace, which logs every call that changes a file, with its data; clients write
and record when they were answered. The log is then replayed up to random instants. For each
instant, possible disk states are built: all unsynced data lost, all of it kept, or a part of it,
torn at sector boundaries (``disk_model``). The server's own code opens each state: the file must
pass the integrity check and contain every write that was acknowledged by then.

Not covered: disks that ignore sync requests, PostgreSQL (its WAL is trusted), the file system
itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sagastore import AsyncClient, Message, RetryPolicy, SagaStoreError
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.errors import StorageError
from tests.support.legacy_sample import Sample, legacy_sample
from tools.chaos.cluster import ChaosServer
from tools.chaos.disk_model import CALLS, Event, Model, read_log
from tools.chaos.plants import POWER_PLANTS

_ONCE = RetryPolicy(max_attempts=1)
_BESIDE = (".lock", ".owner", "-shm")
"""Files that the server can recreate."""

WRITERS = 6
IDS = 12
"""Number of ids per writer."""


class Attempt(NamedTuple):
    """Version of an id that was sent; version 0 is a deletion."""

    version: int
    acknowledged: float | None
    """Time of the acknowledgement in seconds since 1970; None: outcome unknown."""


Ledger = dict[str, list[Attempt]]


class TracedServer(ChaosServer):
    """Server whose file-changing system calls are logged."""

    def __init__(self, sqlite: Path, log: Path, plant: str) -> None:
        """Log to ``log`` with the suffix ``.1``, for the second process ``.2``, and so on."""
        super().__init__(sqlite, {}, plant, None)
        self.logs: list[Path] = []
        self._log = log

    def command(self, *options: str) -> list[str]:
        self.logs.append(self._log.with_suffix(f".{len(self.logs) + 1}"))
        # -D makes the server the direct child, so that signals reach it.
        tracing = ["strace", "-D", "-f", "-q", "-y", "-ttt", "-xx", "-s", "10000000",
                   "-e", f"trace={CALLS}", "-o", str(self.logs[-1])]  # fmt: skip
        return [*tracing, *super().command(*options)]


# ---------------------------------------------------------------------- the recording


async def record(server: TracedServer, seconds: float, seed: int) -> Ledger:
    """Write to the server through a graceful stop and a kill; return the attempts."""
    ledger: Ledger = {}
    rng = random.Random(seed)
    for number, end in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        await asyncio.to_thread(server.start)
        stop = asyncio.Event()
        async with AsyncClient(server.address, retry=_ONCE, timeout=20) as client:
            writers = [
                asyncio.create_task(_write(client, ledger, f"{number}-{one}", rng, stop))
                for one in range(WRITERS)
            ]
            await asyncio.sleep(seconds / 3)
            if end == signal.SIGKILL:
                server.kill9()
            stop.set()
            await asyncio.gather(*writers)
        if end == signal.SIGTERM:
            assert await asyncio.to_thread(server.terminate) == 0
    return ledger


async def _write(
    client: AsyncClient, ledger: Ledger, name: str, rng: random.Random, stop: asyncio.Event
) -> None:
    version = 0
    while not stop.is_set():
        version += 1
        id = f"{name}-{rng.randrange(IDS)}"
        # A message must exist before it can be deleted.
        deletes = id in ledger and ledger[id][-1].version > 0 and rng.random() < 0.15
        sent = 0 if deletes else version
        size = rng.choice([20, 200, 3_000, 30_000])
        attempts = ledger.setdefault(id, [])
        try:
            if deletes:
                await client.delete(id)
            else:
                await client.save(Message("openai", "user", _content(version, size), id=id))
        except SagaStoreError:
            attempts.append(Attempt(sent, None))
            return
        attempts.append(Attempt(sent, time.time()))


def _content(version: int, size: int) -> str:
    return f"{version} " + "lorem ipsum " * (size // 12)


# ---------------------------------------------------------------------- the states


def possible(attempts: list[Attempt], at: float) -> set[int]:
    """Return the versions of an id that may be stored after a power loss at ``at``."""
    versions = [0]
    for attempt in attempts:
        if attempt.acknowledged is not None and attempt.acknowledged < at:
            versions = []
        versions.append(attempt.version)
    return set(versions)


class Recording(NamedTuple):
    """Recorded run."""

    path: Path
    events: list[Event]
    ledger: Ledger
    start: Model
    """Disk state before the first event."""
    before: set[str]
    """Ids that existed by then."""


async def check(path: Path, recording: Recording, at: float) -> list[str]:
    """Open the disk state after a power loss at ``at``; return what is wrong with it."""
    ledger, before = recording.ledger, recording.before
    empty = not await asyncio.to_thread(path.exists)
    if empty and not any(_acknowledged_by(one, at) for one in ledger.values()):
        return []  # Before the first acknowledgement the disk may be empty.
    store = SQLiteStorage(path)
    try:
        await store.open()
        page = await store.scan_ids("", "\U0010ffff", 1_000_000)
    except StorageError as exc:
        return [f"the store cannot be opened: {exc}"]
    finally:
        with contextlib.suppress(StorageError):
            await store.close()
    stored = {message.id: int(message.content.split()[0]) for message in page.messages
              if message.id not in before}  # fmt: skip
    there = {message.id for message in page.messages}
    wrong = [
        f"{id}: the message existed before the run and is lost" for id in sorted(before - there)
    ]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
    if sound != "ok":
        wrong.append(f"integrity_check: {sound}")
    for id in stored.keys() | ledger.keys():
        may = possible(ledger.get(id, []), at)
        if stored.get(id, 0) not in may:
            wrong.append(f"{id}: version {stored.get(id, 0)} is stored; allowed: {may}")
    return wrong


def _acknowledged_by(attempts: list[Attempt], at: float) -> bool:
    return any(one.acknowledged is not None and one.acknowledged < at for one in attempts)


class Outcome(NamedTuple):
    """Result of a replay."""

    states: int
    syncs: int
    wrong: list[str]


async def replay(recording: Recording, seed: int, instants: int) -> Outcome:
    """Check disk states at random instants."""
    events, disk = recording.events, recording.start
    rng = random.Random(f"{seed}/points")
    points = set(rng.sample(range(len(events)), min(instants, len(events))))
    wrong: list[str] = []
    states = 0
    for number, event in enumerate(events):
        if number in points:
            for keeps in (0.0, rng.choice([0.2, 0.5, 0.8]), 1.0):
                state = disk.after_power_loss(rng, keeps)
                with _written(state, recording.path) as found:
                    complaints = await check(found, recording, event.began)
                states += 1
                wrong += [f"call {number} ({event.call} of {Path(event.path).name}), "
                          f"{keeps:.0%} of the rest: {one}" for one in complaints[:3]]  # fmt: skip
        disk.apply(event)
    return Outcome(states, sum(event.call == "fsync" for event in events), wrong)


@contextlib.contextmanager
def _written(state: dict[str, bytes], path: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="power-"))
    try:
        for name, contents in state.items():
            if not name.endswith(_BESIDE):
                (folder / Path(name).name).write_bytes(contents)
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def run(options: argparse.Namespace, *, legacy: bool) -> Outcome:
    """Record a run, replay it, and check the states."""
    folder = Path(tempfile.mkdtemp(prefix="power-loss-"))
    try:
        place = folder / "store"
        place.mkdir()
        path = place / "memory.db"
        model = Model(strict=options.strict)
        before: set[str] = set()
        if legacy:
            sample: Sample = legacy_sample(path, 200)
            model.begin_with(path)
        server = TracedServer(path, folder / "calls", options.plant)
        try:
            ledger = await record(server, options.seconds, options.seed)
        finally:
            server.close()
        if legacy:
            before = await _others(path, ledger)
            assert len(before) == sample.served
        events = [event for log in server.logs for event in read_log(log, place)
                  if not event.path.endswith(_BESIDE)]  # fmt: skip
        recording = Recording(path, events, ledger, model, before)
        return await replay(recording, options.seed, options.points)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _others(path: Path, ledger: Ledger) -> set[str]:
    store = SQLiteStorage(path)
    await store.open()
    try:
        page = await store.scan_ids("", "\U0010ffff", 1_000_000)
    finally:
        await store.close()
    return {message.id for message in page.messages} - ledger.keys()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=150, help="instants to check (150)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds that clients write (6)")
    parser.add_argument(
        "--strict", action="store_true", help="directory changes may survive in any order"
    )
    parser.add_argument("--plant", default="", choices=["", *POWER_PLANTS], metavar="NAME",
                        help=f"fault to plant: {', '.join(POWER_PLANTS)}")  # fmt: skip
    options = parser.parse_args()
    if shutil.which("strace") is None:
        sys.stdout.write("strace is not installed; it is needed to record system calls\n")
        return 2
    failed = False
    for legacy in (False, True):
        outcome = asyncio.run(run(options, legacy=legacy))
        failed |= bool(outcome.wrong)
        kind = "a legacy file" if legacy else "a new file"
        sys.stdout.write(
            f"{kind}: {outcome.states:,} states of the disk, {outcome.syncs:,} syncs recorded, "
            f"{len(outcome.wrong)} wrong\n"
        )
        for line in outcome.wrong[:20]:
            sys.stdout.write(f"  {line[:300]}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
