"""Planted faults of the product or the models that the simulation must detect.

Plants of the chaos campaign (`tools/chaos/plants.py`) that patch `migration/` or `storage/` are
used unchanged; those that patch a store are reimplemented on its model. A plant lasts for the life
of the process, so each is tried in a separate process.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sagastore_server.migration import attachment, migrating_service
from sagastore_server.migration.lease import LeaseGuard, TargetSession
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.router import Router, _NoAnswerError
from sagastore_server.storage.changes import Changes, endless
from sagastore_server.storage.errors import (
    MovedError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from sagastore_server.storage.model import Message, NewMessage, Page, Store
from sagastore_server.storage.replication import Entry, Lease
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.reads import SnapshotReads
from tests.simulation.models.source import ModelSource
from tests.simulation.models.source_disk import JournalRow
from tests.simulation.models.target import ModelTarget
from tests.simulation.models.writer import Job, Kind
from tools.chaos import plants

UNCHANGED = (
    "fence-without-draining",
    "fence-stays-open",
    "stale-fallback",
    "confirm-too-soon",
    "claim-both",
    "return-too-soon",
    "trust-old-phase",
    "complete-without-draining",
    "ignore-if-revision",
    "apply-out-of-order",
    "apply-late",
    "skip-deletes",
    "backfill-skips",
    "prune-unconfirmed",
)
"""Plants of the campaign that patch code that the simulation runs, or that the models override."""

OF_THE_LAST_STEP = ("trust-old-phase", "complete-without-draining")
"""Plants that only the last step reveals."""

NOT_APPLICABLE = {
    "forget-index": "the models search without an index",
    "two-owners": "the lock of the model's file cannot be bypassed",
    "synchronous-normal": "power loss is not simulated",
    "synchronous-off": "power loss is not simulated",
    **dict.fromkeys(
        (
            *("ignore-replication-warning", "position-before-commit", "ignore-timeline"),
            *("check-in-the-same-statement", "no-host-timeout", "repeat-revisions"),
        ),
        "PostgreSQL is one server without standbys",
    ),
}
"""Plants of the campaign that patch code that the simulation does not contain."""

ONE_IN = plants.ONE_IN
ANSWER_SECONDS = 0.0005
"""Seconds until a plant answers that does not wait for the commit."""


class Plant(NamedTuple):
    """Planted fault."""

    name: str
    what: str
    put: Callable[[], None]
    profile: str = ""
    """Profile that can reveal it; empty: any."""


PLANTS: dict[str, Plant] = {}


def _plant(
    name: str, what: str = "", profile: str = ""
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(put: Callable[[], None]) -> Callable[[], None]:
        PLANTS[name] = Plant(name, what or plants.PLANTS[name].what, put, profile)
        return put

    return register


def _of_the_campaign(name: str) -> Callable[[], None]:
    def put() -> None:
        for owner, model in (("PostgreSQLTarget", ModelTarget), ("SQLiteSource", ModelSource)):
            setattr(plants, owner, model)
        plants.put(name)

    return put


for _name in UNCHANGED:
    _plant(_name, profile="last" if _name in OF_THE_LAST_STEP else "")(_of_the_campaign(_name))


def _replace(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


# ---------------------------------------------------------------------- the writers


def _unstored(source: ModelSource) -> Changes:
    """Return changes of the stored rows that are never committed."""
    disk = source._disk
    stored = (dict(disk.messages), dict(disk.sessions))
    files = dict(disk.files)
    return Changes(*stored, endless(disk.revision), source._now(), (Store.SQLITE,), files=files)


@_plant("ack-before-commit")
def _ack_before_commit() -> None:
    original = ModelSource._submit

    async def submit(
        self: ModelSource, kind: Kind, run: Callable[..., object], rows: int = 1
    ) -> object:
        if kind is not Kind.WRITE:
            return await original(self, kind, run, rows)
        self._ready().submit(kind, run, rows).add_done_callback(_ignore_result)
        return run(_unstored(self))

    _replace(ModelSource, "_submit", submit)


@_plant("ack-what-failed")
def _ack_what_failed() -> None:
    original = ModelSource._commit

    def commit(self: ModelSource, kind: Kind, group: Sequence[Job]) -> Sequence[object]:
        outcomes = original(self, kind, group)
        failures = (StorageFullError, UnavailableError)
        if kind is not Kind.WRITE or not all(isinstance(one, failures) for one in outcomes):
            return outcomes
        changes = _unstored(self)
        return [_answer(job, changes) for job in group]

    _replace(ModelSource, "_commit", commit)


def _answer(job: Job, changes: Changes) -> object:
    try:
        return job.run(changes)
    except StorageError as exc:
        return exc


@_plant("postgres-ack-before-commit")
def _postgres_ack_before_commit() -> None:
    original = ModelTarget._change

    async def change(
        self: ModelTarget,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], Any],
        messages: Sequence[NewMessage] = (),
    ) -> Any:
        work = asyncio.ensure_future(original(self, ids, sessions, apply, messages))
        work.add_done_callback(_ignore_result)
        await asyncio.sleep(ANSWER_SECONDS)
        if work.done():
            return work.result()
        server = self._server
        stored = (dict(server.rows), dict(server.sessions))
        revisions = endless(server.revision)
        return apply(Changes(*stored, revisions, self._now(), (Store.POSTGRESQL,)))

    _replace(ModelTarget, "_change", change)


def _ignore_result(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()


# ---------------------------------------------------------------------- the journal


@_plant("drop-journal-row")
def _drop_journal_row() -> None:
    original, times = ModelSource._journal_entries, itertools.count(1)

    def entries(self: ModelSource, rows: Sequence[JournalRow]) -> None:
        original(self, [row for row in rows if next(times) % ONE_IN])

    _replace(ModelSource, "_journal_entries", entries)


@_plant("forget-left-session", "a session that a message leaves is not journalled")
def _forget_left_session() -> None:
    original = ModelSource._journal_entries

    def entries(self: ModelSource, rows: Sequence[JournalRow]) -> None:
        original(self, [row for row in rows if row.kind is not RecordKind.SESSION])

    _replace(ModelSource, "_journal_entries", entries)


@_plant("keep-old-session", "a session that PostgreSQL has is not replaced by a newer one")
def _keep_old_session() -> None:
    def apply_sessions(self: ModelTarget, server: PostgresServer, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.session is not None:
                server.sessions.setdefault(entry.session.session_id, entry.session)

    _replace(ModelTarget, "_apply_sessions", apply_sessions)


@_plant("ignore-session-guard", "Append does not check the revision of the session")
def _ignore_session_guard() -> None:
    original = Changes.append

    def append(
        self: Changes, session_id: str, drafts: Sequence[NewMessage], if_revision: int | None
    ) -> Any:
        if self._session(session_id).exists:
            if_revision = None
        return original(self, session_id, drafts, if_revision)

    _replace(Changes, "append", append)


@_plant("gap-before-journal")
def _gap_before_journal() -> None:
    original = ModelSource._journal_entries
    begun: dict[ModelSource, float] = {}

    def entries(self: ModelSource, rows: Sequence[JournalRow]) -> None:
        now = asyncio.get_running_loop().time()
        if now - begun.setdefault(self, now) > 0.05:
            original(self, rows)

    _replace(ModelSource, "_journal_entries", entries)


@_plant("note-before-apply")
def _note_before_apply() -> None:
    original = ModelTarget.apply

    async def apply(
        self: ModelTarget, lease: Lease, entries: Sequence[Entry], after: int | None = None
    ) -> None:
        await self._holding(lease, lambda _: None, entries[-1].sequence)
        await original(self, lease, entries)

    _replace(ModelTarget, "apply", apply)


# ---------------------------------------------------------------------- guards in PostgreSQL


@_plant("unguarded-upsert", profile="copy")
def _unguarded_upsert() -> None:
    _replace(ModelTarget, "_replaces", lambda self, old, new: True)


@_plant("skip-tombstones", profile="copy")
def _skip_tombstones() -> None:
    def bury(self: ModelTarget, server: PostgresServer, key: str, revision: int) -> None:
        stored: Message | None = server.rows.get(key)
        if stored is not None and stored.revision < revision:
            del server.rows[key]

    _replace(ModelTarget, "_bury", bury)


@_plant("move-replaced", "a replaced message gets a new sequence")
def _move_replaced() -> None:
    put = Changes._put

    def moved(self: Any, draft: Any, stored: Any, turn: Any = None) -> Message:
        message = put(self, draft, stored, turn)
        if stored is not None and message is not stored:
            message = self.after[draft.id] = message._replace(sequence=message.revision)
        return message

    _replace(Changes, "_put", moved)


@_plant("order-by-id", "messages with equal timestamps are listed by id")
def _order_by_id() -> None:
    list_session = SnapshotReads.list_session

    async def by_id(self: Any, session_id: str, scan: Any) -> Page:
        page = await list_session(self, session_id, scan)
        return page._replace(
            messages=sorted(page.messages, key=lambda one: (one.timestamp, one.id))
        )

    _replace(SnapshotReads, "list_session", by_id)


# ---------------------------------------------------------------------- former bugs


@_plant(
    "release-read-before",
    "a read that began before PostgreSQL was current is not held back",
    "flap",
)
def _release_read_before() -> None:
    _release_only(failed=True)


@_plant(
    "release-failed-read",
    "a read that only PostgreSQL failed is answered by SQLite at once",
    "flap",
)
def _release_failed_read() -> None:
    _release_only(failed=False)


def _release_only(*, failed: bool) -> None:
    """Hold back only answers to reads that PostgreSQL failed, or only the others."""
    failing: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
    read_target, release = Router._read_target, Router._release

    async def noted(self: Any, read: Any) -> Any:
        try:
            return await read_target(self, read)
        except _NoAnswerError:
            task = asyncio.current_task()
            assert task is not None
            failing.add(task)
            raise

    async def released(self: Any) -> None:
        if (asyncio.current_task() in failing) is failed:
            await release(self)

    _replace(Router, "_read_target", noted)
    _replace(Router, "_release", released)


@_plant("flush-at-once", "the write queue is not flushed before its high-water mark is read")
def _flush_at_once() -> None:
    async def flush(self: ModelSource) -> int:
        return self.committed

    async def reconcile(source: Any, current_state: Any, record: Any) -> int:
        status = await source.journal_status(record.applied)
        return int(max(current_state.state.base, status.pruned, record.applied))

    _replace(ModelSource, "flush", flush)
    # Otherwise an attachment would journal again the entries missing above `base`.
    _replace(attachment, "_reconcile", reconcile)


@_plant("acknowledge-unproved", "a write is acknowledged without checking the lease", "rival")
def _acknowledge_unproved() -> None:
    async def confirmed(self: Any) -> bool:
        phase = self._current_state.phase
        if not (phase.reads_postgres and phase.writes_sqlite):
            return False
        return bool(await self._fallback.confirm(self._source.committed))

    _replace(Router, "_confirmed", confirmed)


@_plant(
    "serve-contested",
    "a server continues to serve although another one may hold the lease",
    profile="rival",
)
def _serve_contested() -> None:
    _replace(LeaseGuard, "contest", lambda self, blocker: None)


@_plant(
    "trust-set-back",
    "a set-back of PostgreSQL is not detected",
    profile="restore",
)
def _trust_set_back() -> None:
    apply, copy = ModelTarget.apply, ModelTarget.copy

    async def applied(self: Any, lease: Any, entries: Any, after: Any = None) -> None:
        await apply(self, lease, entries)

    async def copied(self: Any, lease: Any, rows: Any, mark: Any, before: Any = None) -> Any:
        return await copy(self, lease, rows, mark)

    async def renew(self: Any) -> None:
        await self.request(self._target.renew(self.lease))

    _replace(ModelTarget, "apply", applied)
    _replace(ModelTarget, "copy", copied)
    _replace(TargetSession, "renew", renew)


@_plant(
    "connection-loss-unheard", "a lost connection does not trigger a check of PostgreSQL", "restore"
)
def _connection_loss_unheard() -> None:
    _replace(Replicator, "_connection_lost", lambda self: None)


# ---------------------------------------------------------------------- misconfiguration


@_plant(
    "serve-old-file",
    "a file is served although PostgreSQL has seen later changes of it",
    "mistakes",
)
def _serve_old_file() -> None:
    for module in (attachment, migrating_service):
        _replace(module, "check", lambda *_: None)


@_plant("serve-new-file", "a new file is served during the migration of another file", "mistakes")
def _serve_new_file() -> None:
    async def unasked(self: Any) -> None:
        """Skip the check."""

    _replace(migrating_service.MigratingService, "_refuse_new_file_beside_messages", unasked)


@_plant("any-archive", "an archived file is served from any finished PostgreSQL", "mistakes")
def _any_archive() -> None:
    original = MovedError.__init__

    def forget(self: Any, message: str, store_id: str = "") -> None:
        original(self, message)

    _replace(MovedError, "__init__", forget)


@_plant("any-postgres", "changes are replicated to a PostgreSQL of another migration", "mistakes")
def _any_postgres() -> None:
    original, inspect = ModelTarget.claim, ModelTarget.inspect

    async def inspected(self: Any) -> Any:
        found = await inspect(self)
        record = found.record and found.record._replace(source="store-1", epoch=0, applied=0)
        return found._replace(record=record)

    async def claim(self: Any, lease: Any, source: str, *rest: Any, **options: Any) -> Any:
        record = self._server.record
        if record is not None:
            self._server.record = record._replace(source=source)
        return await original(self, lease, source, *rest, **options)

    _replace(ModelTarget, "inspect", inspected)
    _replace(ModelTarget, "claim", claim)
