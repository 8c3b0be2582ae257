"""Complete migration of a small legacy file, with clients, an operator and crashes.

Clients write, delete and read throughout. An operator goes through the phases, with one step back.
Whenever the server ends, it is restarted on the same port with the same options, as by a service
manager. At the end everything is compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from sagastore import (
    AsyncClient,
    FailedPreconditionError,
    Message,
    Migration,
    NotFoundError,
    Phase,
    RetryPolicy,
    UnavailableError,
)
from sagastore.receipt import check, receipt_path
from tests.support.crashing_server import CrashingServer
from tests.support.ledger import Ledger, message_of, session_of, word_of
from tests.support.legacy_db import MESSAGES, PLAIN, RawText, legacy_db, numbered

LEGACY = 200
"""Number of messages in the file."""

QUARANTINED = 5
FILES = 3
EXTRAS = 20

PLAN = (
    Phase.DUAL_WRITE,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.POSTGRES_ONLY,
)
"""Steps of the operator; they make epochs 1 to 7."""

WITHIN = 90.0
"""Time limit of a run in seconds; typical runs take four or five."""

ROUNDS = 3
"""Minimum number of rounds of every client in each phase."""

_THINK = 0.03
"""Seconds between two rounds of a client, so that the server is busy, but not the machine."""

_PATIENT = RetryPolicy(max_attempts=10_000, initial_backoff=0.02, max_backoff=0.1)
_IMPATIENT = RetryPolicy(max_attempts=1)
EVERY_ATTEMPT = (
    "/save",
    "/bulk_save",
    "/delete",
    " of writes",
    " of apply",
    " of prune",
    "checkpointer",
)
"""Steps that recur while clients write, so they can be waited for."""
WHEN_IDLE = (" of renew",)
"""Steps that occur only without client writes: a run passes them if requested, or if it is slow."""

_WORTH_WAITING = {
    "BACKFILL_NOT_DONE",
    "CHANGE_UNDER_WAY",
    "INDEXES_NOT_VALID",
    "JOURNAL_NOT_APPLIED",
    "NOT_VERIFIED",
    "POSTGRES_BEHIND",
    "POSTGRES_UNAVAILABLE",
}
"""Blockers that resolve without an action."""


class Outcome(NamedTuple):
    """Result of a run."""

    passed: Counter[str]
    """Passes of each boundary: the maximum over the processes."""
    crashes: int
    writes: int
    reads: int


async def run_migration(folder: Path, dsn: str, points: Sequence[str] = ()) -> Outcome:
    """Migrate, crash at each of ``points``, and check everything against the ledger.

    Raises:
        AssertionError: Data was lost or reappeared, or a point was not passed; the notes contain
            the last steps and the log of the server.
    """
    run = _Run(folder, dsn, points)
    try:
        async with asyncio.timeout(WITHIN):
            return await run.go()
    except BaseException as exc:
        steps = "\n".join(run.server.trace.read_text().splitlines()[-25:])
        log = "\n".join(run.server.stderr[-25:])
        exc.add_note(f"the last steps:\n{steps}\nthe log:\n{log}")
        raise
    finally:
        run.server.close()


class _Run:
    def __init__(self, folder: Path, dsn: str, points: Sequence[str]) -> None:
        self.path = folder / "memory.db"
        self.dsn = dsn
        self.points = tuple(points)
        self.server = CrashingServer(self.path, dsn, folder / "trace", self.points)
        self.server.trace.touch()
        self.ledger = Ledger()
        self.supervisor = _Supervisor(self.server)

    async def go(self) -> Outcome:
        legacy_file(self.path)
        self.ledger.begin_with(legacy_message(number) for number in range(LEGACY))
        await self.supervisor.start()
        async with (
            asyncio.TaskGroup() as group,
            AsyncClient(self.server.address, retry=_PATIENT, timeout=60) as client,
            AsyncClient(self.server.address, retry=_IMPATIENT, timeout=60) as impatient,
        ):
            supervising = group.create_task(self.supervisor.keep())
            crowd = _Crowd(self.ledger, client, impatient, self.supervisor)
            writing = [group.create_task(work) for work in crowd.works()]
            await _Operator(client, crowd, self.supervisor).operate()
            crowd.over = True
            await asyncio.gather(*writing)
            await self._compare(client)
            self.supervisor.over = True
            status = await asyncio.to_thread(self.server.terminate)
            assert status == 0, "the server did not stop cleanly"
            await supervising
        assert self.supervisor.crashes == len(self.points), "not every point was passed"
        await asyncio.to_thread(self._check_archive)
        return Outcome(
            passings(self.server.trace),
            self.supervisor.crashes,
            self.ledger.acknowledged,
            self.ledger.reads,
        )

    async def _compare(self, client: AsyncClient) -> None:
        exported = [message async for message in client.export()]
        stored = {message.id: message for message in exported}
        assert len(stored) == len(exported)
        self.ledger.compare(stored)
        connection = await asyncpg.connect(self.dsn)
        try:
            for table, rows in (
                ("messages", len(stored)),
                ("quarantine", QUARANTINED),
                ("files", FILES),
                ("legacy_extra", EXTRAS),
            ):
                found = await connection.fetchval(f"SELECT count(*) FROM {table}")
                assert found == rows, f"{table} has {found} rows, not {rows}"
        finally:
            await connection.close()

    def _check_archive(self) -> None:
        archive = self.path.with_name("memory.db.archive")
        result = check(archive)
        assert result.ok, [one for one in result.checks if not one.ok]
        rows = {kind: result.said.facts[kind]["rows"] for kind in ("quarantine", "files", "extras")}
        assert rows == {"quarantine": QUARANTINED, "files": FILES, "extras": EXTRAS}
        names = {file.name for file in self.path.parent.iterdir() if file.is_file()}
        # A killed server cannot remove its owner file.
        locks = {"memory.db.lock", "memory.db.owner"}
        beside = {self.server.trace.name, "memory.db.before-sagastore", *locks}
        assert names - beside == {archive.name, receipt_path(self.path).name}, names


class _Supervisor:
    """Restarts the server whenever it has killed itself."""

    def __init__(self, server: CrashingServer) -> None:
        self.server = server
        self.crashes = 0
        self.over = False
        self.up = asyncio.Event()
        self._crashed = asyncio.Condition()

    async def start(self) -> None:
        """Start the server and wait until it serves."""
        while True:
            try:
                await asyncio.to_thread(self.server.start)
            except AssertionError:
                await asyncio.to_thread(self.server.wait)
                await self._ended()
            else:
                self.up.set()
                return

    async def keep(self) -> None:
        """Wait for its end and restart it."""
        while True:
            await asyncio.to_thread(self.server.wait)
            if self.over:
                return
            self.up.clear()
            await self._ended()
            await self.start()

    def to_crash_in(self, stage: str, steps: Iterable[str]) -> bool:
        """Return whether the next crash is at one of ``steps`` of ``stage``."""
        point = self.server.point
        return point.startswith(f"{stage}/") and any(step in point for step in steps)

    async def until_crashed(self) -> None:
        """Wait for the next crash."""
        point = self.server.point
        async with self._crashed:
            await self._crashed.wait_for(lambda: self.server.point != point)

    async def _ended(self) -> None:
        log = "\n".join(self.server.stderr[-25:])
        assert self.server.killed_itself, f"the server ended unexpectedly:\n{log}"
        async with self._crashed:
            self.crashes += 1
            self.server.point = ""
            self._crashed.notify_all()


class _Operator:
    """Goes through the phases despite crashes of the server."""

    def __init__(self, client: AsyncClient, crowd: _Crowd, supervisor: _Supervisor) -> None:
        self._client = client
        self._crowd = crowd
        self._supervisor = supervisor
        self._epoch = 0

    async def operate(self) -> None:
        """Execute the plan."""
        await self._dwell(Phase.SQLITE_ONLY)
        for phase in PLAN:
            await self._change(phase)
            await self._dwell(phase)

    async def _dwell(self, phase: Phase) -> None:
        """Wait until every client has acted in the phase."""
        await self._crowd.rounds(ROUNDS)
        self._check_epoch(await self._client.migration.get())
        stage = f"{self._epoch}-{phase.label.replace('_', '-')}"
        if self._supervisor.to_crash_in(stage, EVERY_ATTEMPT):
            await self._supervisor.until_crashed()
        elif self._supervisor.to_crash_in(stage, WHEN_IDLE):
            self._crowd.going.clear()
            await self._supervisor.until_crashed()
            self._crowd.going.set()

    async def _change(self, phase: Phase) -> None:
        while True:
            try:
                done = await self._client.migration.change_phase(phase, accept_quarantine=True)
            except FailedPreconditionError as exc:
                if not {violation.type for violation in exc.violations} <= _WORTH_WAITING:
                    raise
            else:
                self._check_epoch(done)
                assert done.phase is phase
                return
            await self._wait_for_next_phase()

    async def _wait_for_next_phase(self) -> None:
        async with contextlib.aclosing(self._client.migration.watch()) as watching:
            async for status in watching:
                self._check_epoch(status)
                if not {blocker.reason for blocker in status.blockers_to_next} & _WORTH_WAITING:
                    return

    def _check_epoch(self, status: Migration) -> None:
        assert status.epoch >= self._epoch, f"epoch {status.epoch} after {self._epoch}"
        self._epoch = status.epoch


class _Crowd:
    """Clients that write, and read each write back."""

    def __init__(
        self, ledger: Ledger, client: AsyncClient, impatient: AsyncClient, supervisor: _Supervisor
    ) -> None:
        self._ledger = ledger
        self._client = client
        self._impatient = impatient
        self._supervisor = supervisor
        self._versions = itertools.count(1)
        self._done: Counter[str] = Counter()
        self._grown = asyncio.Condition()
        self.going = asyncio.Event()
        self.going.set()
        self.over = False

    def works(self) -> list[Coroutine[Any, Any, None]]:
        """Return the loop of each client."""
        works: dict[str, Callable[[str, int], Coroutine[Any, Any, None]]] = {
            "patient": self._save,
            "steady": self._save,
            "impatient": self._save_once,
            "deleting": self._delete,
            "bulky": self._save_many,
        }
        return [self._work(name, work) for name, work in works.items()]

    async def rounds(self, count: int) -> None:
        """Wait until every client has completed ``count`` more rounds."""
        before = self._done.copy()
        async with self._grown:
            await self._grown.wait_for(
                lambda: all(self._done[name] >= before[name] + count for name in self._names)
            )

    async def _work(self, name: str, work: Callable[[str, int], Coroutine[Any, Any, None]]) -> None:
        for number in itertools.count():
            await self.going.wait()
            if self.over:
                return
            await work(name, number)
            await asyncio.sleep(_THINK)
            async with self._grown:
                self._done[name] += 1
                self._grown.notify_all()

    _names = ("patient", "steady", "impatient", "deleting", "bulky")

    # ------------------------------------------------------------------ writes

    async def _save(self, name: str, number: int) -> None:
        id = self._id(name, number)
        await self._saved(id, next(self._versions))
        await self._read_back(id, number)

    async def _saved(self, id: str, version: int) -> None:
        message = message_of(id, version)
        self._ledger.attempt(id, message)
        answer = await self._client.save(message)
        self._ledger.acknowledge(id, message, answer.revision)

    async def _save_once(self, name: str, number: int) -> None:
        """Save or delete with an unknown outcome."""
        id = self._id(name, number)
        message = None if number % 4 == 3 else message_of(id, next(self._versions))
        self._ledger.attempt(id, message)
        revision = None
        try:
            if message is None:
                await self._impatient.delete(id)
            else:
                revision = (await self._impatient.save(message)).revision
        except NotFoundError:
            assert message is None
            assert not self._ledger.holds(id), f"{id} is lost"
            self._ledger.acknowledge(id, None)
        except UnavailableError:
            await self._supervisor.up.wait()
        else:
            self._ledger.acknowledge(id, message, revision)
        await self._read_back(id, number)

    async def _delete(self, name: str, number: int) -> None:
        """Save, delete, and sometimes save again."""
        id = self._id(name, number)
        await self._saved(id, next(self._versions))
        self._ledger.attempt(id, None)
        await self._client.delete(id)
        self._ledger.acknowledge(id, None)
        await self._read_back(id, number)
        if number % 3 == 2:
            await self._saved(id, next(self._versions))
            await self._read_back(id, number + 1)

    async def _save_many(self, name: str, number: int) -> None:
        version = next(self._versions)
        first = number * 3 % 17
        messages = [message_of(f"{name}-{first + n}", version) for n in range(10)]
        for message in messages:
            self._ledger.attempt(message.id, message)
        await self._client.bulk_save(messages)
        for message in messages:
            self._ledger.acknowledge(message.id, message)
        found = await self._client.batch_get([message.id for message in messages])
        by_id = {message.id: message for message in found.messages}
        for message in messages:
            self._ledger.saw(message.id, by_id.get(message.id), "BatchGet")

    def _id(self, name: str, number: int) -> str:
        """Return an id of this client: every third one comes from the legacy file."""
        if number % 3:
            return f"{name}-{number % 7}"
        return f"m{number // 3 % 10 * len(self._names) + self._names.index(name)}"

    # ------------------------------------------------------------------ reads

    async def _read_back(self, id: str, number: int) -> None:
        ways = (self._get, self._list, self._search, self._batch_get)
        way = ways[number % len(ways)]
        self._ledger.saw(id, await way(id), way.__name__.strip("_"))

    async def _get(self, id: str) -> Message | None:
        try:
            return await self._client.get(id)
        except NotFoundError:
            return None

    async def _batch_get(self, id: str) -> Message | None:
        found = await self._client.batch_get([id])
        return found.messages[0] if found.messages else None

    async def _list(self, id: str) -> Message | None:
        found = [message async for message in self._client.list(session_of(id))]
        return self._only(id, found) if found else await self._get(id)

    async def _search(self, id: str) -> Message | None:
        """Search for the unique word of a message that a Get has returned."""
        there = await self._get(id)
        if there is None or "version" not in there.metadata:
            return there
        query = word_of(id, there.metadata["version"])
        found = [result.message async for result in self._client.search(query)]
        assert found, f"{id} is stored, but not found by its word {query}"
        return self._only(id, found)

    def _only(self, id: str, found: list[Message]) -> Message:
        assert [message.id for message in found] == [id], f"{id}: unexpected result: {found}"
        return found[0]


def legacy_file(path: Path) -> None:
    """Write the legacy file to migrate."""
    rows = numbered(LEGACY)
    for number, row in enumerate(rows[:EXTRAS]):
        row["mood"] = f"mood {number}"
    bad = [
        {**PLAIN, "id": f"bad{number}", "timestamp": "soon"} for number in range(QUARANTINED - 1)
    ]
    bad.append({**PLAIN, "id": "bytes", "content": RawText(b"\xff\xfe")})
    with_mood = MESSAGES.replace("session_id TEXT,", "session_id TEXT,\n mood TEXT,")
    assert with_mood != MESSAGES
    legacy_db(path, [*rows, *bad], messages=with_mood)


def legacy_message(number: int) -> Message:
    """Return the message of a row of the legacy file."""
    return Message(
        "openai",
        "user",
        f"message {number} ",
        id=f"m{number}",
        tags=("a",),
        timestamp=datetime(2025, 4, 2, 10, 0, 0, tzinfo=UTC),
        metadata={"n": 1},
        session_id="s",
        created_at=datetime(2025, 4, 2, 10, 0, 1, tzinfo=UTC),
    )


def passings(trace: Path) -> Counter[str]:
    """Return the maximum number of passes of each boundary by one process."""
    most: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        name, _, number = line.rpartition("#")
        if name:
            most[name] = max(most[name], int(number))
    return most


def steps_of(points: Iterable[str]) -> set[str]:
    """Return the steps of boundaries or points, without phase and number."""
    return {
        point.partition("/")[2].rpartition("#")[0] or point.partition("/")[2] for point in points
    }
