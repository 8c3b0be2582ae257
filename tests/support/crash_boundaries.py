"""Crash boundaries: marks the steps of a server that a crash can separate.

The product contains no hook code. ``install`` wraps each transaction of either store, each change
of the stores' and the server's state, each part of the backfill, each write, and each rename or
permission change of a file. Each passed boundary is written to a trace; at a chosen boundary the
process kills itself with SIGKILL.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import sqlite3
import sys
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import asyncpg

from sagastore_server import app
from sagastore_server.migration import auxiliary_rows
from sagastore_server.migration.current_state import CurrentState
from sagastore_server.migration.fallback import Fallback, ReplicaStatus
from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.migration.router import Router
from sagastore_server.migration.tuning import Tuning
from sagastore_server.migration.write_fence import WriteFence
from sagastore_server.postgresql.connecting import WatchedConnection
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.journal import change_state
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.replication import AuxiliaryRows, BackfillMark, MigrationState

_SQLITE = re.compile(r"(COMMIT|PRAGMA wal_checkpoint|PRAGMA journal_mode = DELETE)")
_POSTGRES = re.compile(r"(COMMIT|(?:CREATE|DROP) INDEX CONCURRENTLY|ANALYZE)")
_FILES = ("rename", "replace", "unlink", "chmod", "fsync")

Function = Callable[..., Any]

_call = ContextVar("_call", default="")
"""Call of the target that the task executes."""


class Boundaries:
    """Counts and records passed boundaries, and kills the process at the chosen one."""

    def __init__(self, trace: Path, kill_at: str) -> None:
        """Record in ``trace``; ``kill_at`` is ``name#n``, or empty."""
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kill_at = kill_at
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.stage = "opening"
        """State of the migration: the number of its epoch, and the phase."""

    def passed(self, step: str, when: str) -> None:
        """Pass the boundary ``when`` (before, after, …) of ``step``."""
        with self._lock:
            name = f"{self.stage}/{step}/{when}"
            self._counts[name] += 1
            name = f"{name}#{self._counts[name]}"
            os.write(self._trace, f"{name}\n".encode())
            if name == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def enter(self, state: MigrationState) -> None:
        """Record the new state of the migration."""
        self.stage = stage_of(state)


def stage_of(state: MigrationState) -> str:
    """Return the name of a migration state: ``6-read-postgres-completing``."""
    completing = "-completing" if state.completing and state.phase.writes_sqlite else ""
    return f"{state.epoch}-{state.phase.slug}{completing}"


def install(boundaries: Boundaries) -> None:
    """Mark all boundaries, and reduce batch sizes so that few rows make many steps."""
    _make_steps_small()
    _mark_sqlite(boundaries)
    _mark_postgres(boundaries)
    _mark_files(boundaries)
    _mark_calls(boundaries)
    _mark_memory(boundaries)


def _make_steps_small() -> None:
    tuning = Tuning(
        journal_batch=20,
        prune_seconds=0.2,
        return_seconds=0.1,
        backfill_idle_seconds=0.2,
        caretaker_seconds=0.1,
    )
    _replace(app, "MigratingService", partial(MigratingService, tuning=tuning))
    _replace(auxiliary_rows, "_ROWS", 2)
    original = SQLiteSource.scan_ids

    async def scan_ids(self: SQLiteSource, after: str, upto: str, limit: int) -> Any:
        return await original(self, after, upto, min(limit, 90))

    _replace(SQLiteSource, "scan_ids", scan_ids)


def _replace(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


# ---------------------------------------------------------------------- transactions


def _mark_sqlite(boundaries: Boundaries) -> None:
    """Mark the statements that make a transaction or a change of the file durable."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            found = _SQLITE.match(sql)
            if found is None:
                return super().execute(sql, *rest)
            step = f"sqlite {found[1]} of {_caller(sys._getframe(1)) or 'the checkpointer'}"
            boundaries.passed(step, "before")
            cursor = super().execute(sql, *rest)
            boundaries.passed(step, "after")
            return cursor

    original = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = original(*arguments, **{"factory": Connection, **options})
        return connection

    _replace(sqlite3, "connect", connect)


def _mark_postgres(boundaries: Boundaries) -> None:
    """Mark commits; ``sent`` is the moment after the request and before its answer."""
    original = asyncpg.Connection.execute
    reading: weakref.WeakSet[Any] = weakref.WeakSet()

    async def execute(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        if query.startswith("BEGIN"):
            (reading.add if "READ ONLY" in query else reading.discard)(self)
        found = _POSTGRES.match(query)
        if found is None or self in reading:
            if query in {"COMMIT", "ROLLBACK"}:
                reading.discard(self)
            return await original(self, query, *arguments, **options)
        step = f"postgres {found[1]} of {_call.get() or _caller(sys._getframe(1))}"
        boundaries.passed(step, "before")
        statement = asyncio.ensure_future(original(self, query, *arguments, **options))
        for _ in range(3):
            await asyncio.sleep(0)  # uvloop writes at the end of an iteration.
        boundaries.passed(step, "sent")
        answer = await statement
        boundaries.passed(step, "after")
        return answer

    _replace(WatchedConnection, "execute", execute)


def _mark_files(boundaries: Boundaries) -> None:
    for name in _FILES:
        _mark_file_call(boundaries, name, getattr(os, name))


def _mark_file_call(boundaries: Boundaries, name: str, original: Function) -> None:
    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        caller = _caller(sys._getframe(1))
        if not caller:
            return original(*arguments, **options)
        boundaries.passed(f"file {name} of {caller}", "before")
        answer = original(*arguments, **options)
        boundaries.passed(f"file {name} of {caller}", "after")
        return answer

    _replace(os, name, call)


def _caller(frame: FrameType | None) -> str:
    """Return the caller of a statement: the nearest function of the product with a public name."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("sagastore.", "sagastore_server.")):
            run = frame.f_locals.get("run")
            if frame.f_code is SQLiteGroupWriter._run_in_transaction.__code__ and run is not None:
                return _name_of(run)
            name = frame.f_code.co_name
            if name == "_commit_once":
                return "writes"
            if not name.startswith(("_", "<")) and not module.endswith((".pool", ".queries")):
                if name not in {"once", "run"}:
                    return name
                if name == "run" and module.endswith(".takeover"):
                    return "take_over"
        frame = frame.f_back
    return ""


def _name_of(run: object) -> str:
    if isinstance(run, partial):
        if run.func is change_state:
            return _state_set(**run.keywords)
        run = run.func
    return str(getattr(run, "__name__", "something")).lstrip("_")


def _state_set(state: MigrationState, rejournal_after: int | None) -> str:
    verified = " verified" if state.last_verification is not None else ""
    again = " rejournal" if rejournal_after is not None else ""
    return f"set_state({stage_of(state)}{verified}{again})"


# ---------------------------------------------------------------------- calls


def _mark_calls(boundaries: Boundaries) -> None:
    for name in ("claim", "release", "renew", "set_phase", "apply", "finish", "refresh_statistics"):
        _name_call(name, _plain(name))
    for name, label in (("copy", _copy), ("carry", _carry), ("build_index", _build_index)):
        _name_call(name, label)
    for name in ("save", "bulk_save", "delete"):
        _mark_call(boundaries, Router, name, ("after",))
    _mark_call(boundaries, SQLiteSource, "archive", ("before", "after"))


def _name_call(name: str, label: Function) -> None:
    """Attach the name of a call of the target to its statements."""
    original: Function = getattr(PostgreSQLTarget, name)

    @functools.wraps(original)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        token = _call.set(label(*arguments, **options))
        try:
            return await original(self, *arguments, **options)
        finally:
            _call.reset(token)

    _replace(PostgreSQLTarget, name, call)


def _mark_call(boundaries: Boundaries, owner: type, name: str, when: tuple[str, ...]) -> None:
    original: Function = getattr(owner, name)

    @functools.wraps(original)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if "before" in when:
            boundaries.passed(name, "before")
        answer = await original(self, *arguments, **options)
        boundaries.passed(name, "after")
        return answer

    _replace(owner, name, call)


def _plain(name: str) -> Function:
    return lambda *_, **__: name


def _copy(_: object, messages: list[object], mark: BackfillMark, *__: object) -> str:
    what = "rows" if messages else f"mark {mark.state.value}{' carried' if mark.carried else ''}"
    return f"copy({what})"


def _carry(_: object, rows: AuxiliaryRows, *__: object, first: bool) -> str:
    kinds = [kind for kind, found in rows._asdict().items() if found]
    return f"carry({'first' if first else ' '.join(kinds)})"


def _build_index(name: str, _: object) -> str:
    return f"build_index({name})"


# ---------------------------------------------------------------------- state in memory


def _mark_memory(boundaries: Boundaries) -> None:
    enter, closed = CurrentState.enter, WriteFence.closed
    set_status = Fallback.set_status

    def entered(self: CurrentState, state: MigrationState) -> None:
        enter(self, state)
        boundaries.enter(state)
        boundaries.passed("in force", "after")

    def stood(self: Fallback, standing: ReplicaStatus) -> None:
        before = self.status
        set_status(self, standing)
        if standing is not before:
            boundaries.passed(f"follower({standing.value})", "after")

    @asynccontextmanager
    async def fenced(self: WriteFence, within: float) -> AsyncIterator[None]:
        async with closed(self, within):
            boundaries.passed("fence", "closed")
            yield
            boundaries.passed("fence", "opening")

    _replace(CurrentState, "enter", entered)
    _replace(Fallback, "set_status", stood)
    _replace(WriteFence, "closed", fenced)
