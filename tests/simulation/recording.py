"""Records a round of the simulation as a trace that `tools.spec.trace` can check.

The durable steps of both stores, what the server knows, and what clients are told become
events, in their order. The objects of the round are hooked while it runs; no product code
knows of it. Left out: the profile "rival" (a second server is no part of the trace), and
reads other than Get and BatchGet.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from sagastore_server.migration.live import LiveMigration
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message, Page, SaveResult
from sagastore_server.storage.replication import BackfillMark, MigrationState
from tests.simulation import service as services
from tests.simulation.models.process import Process
from tests.simulation.models.source import ModelSource
from tests.simulation.models.source_disk import SourceDisk
from tests.simulation.models.target import ModelTarget
from tests.simulation.models.transaction import Read, Write
from tests.simulation.world import World

T = TypeVar("T")
Event = dict[str, Any]


class _Call(NamedTuple):
    """A write of one message, or a read of one."""

    name: str
    id: str


class _Sent(NamedTuple):
    """A transaction on its way to the target."""

    kind: str
    ids: tuple[str, ...] = ()
    before: BackfillMark | None = None
    after: BackfillMark | None = None


_WRITES: contextvars.ContextVar[list[_Call] | None] = contextvars.ContextVar("writes", default=None)
_READS: contextvars.ContextVar[dict[str, _Call] | None] = contextvars.ContextVar(
    "reads", default=None
)
_SENT: contextvars.ContextVar[_Sent | None] = contextvars.ContextVar("sent", default=None)
_PAGE: contextvars.ContextVar[BackfillMark | None] = contextvars.ContextVar("page", default=None)
_ATTACHING: contextvars.ContextVar[bool] = contextvars.ContextVar("attaching", default=False)


def record(world: World) -> list[Event]:
    """Run a round, and return its events; ``world.violations`` has the verdict of the round."""
    trace = Trace(world)
    make = services.make_live

    def make_watched(of: World, disk: SourceDisk, process: Process) -> LiveMigration:
        live = make(of, disk, process)
        if disk is world.disk:
            Watched(trace, live, process)
        return live

    services.make_live = make_watched
    try:
        world.run()
    finally:
        services.make_live = make
    return trace.finished()


class Trace:
    """The events of a round."""

    def __init__(self, world: World) -> None:
        """Hook the file and PostgreSQL of a round."""
        self.world = world
        self.events: list[Event] = []
        self.sessions: dict[str, int] = {"": 0}
        """Number of the process, by the session of its lease."""
        self._numbers = itertools.count(1)
        self.written: dict[int, list[tuple[_Call, bool, int]]] = {}
        """What the writes of a group did: the call, whether it deletes, and the revision."""
        self._fill = world._fill_file
        world._fill_file = self._filled  # type: ignore[method-assign]
        _hook_disk(self, world.disk)
        _hook_postgres(self)
        kill = world.service.kill

        def killed(after: float) -> None:
            if not world.service.process.dead:
                self.note("crash")
            kill(after)

        world.service.kill = killed  # type: ignore[method-assign]

    def _filled(self) -> None:
        self._fill()
        disk = self.world.disk
        rows = {key: message.revision for key, message in disk.messages.items()}
        self.events.insert(0, {"event": "begin", "rows": rows, "revision": disk.revision})

    def note(self, kind: str, **fields: Any) -> None:
        """Add an event, unless the round is over."""
        if not self.world.log.over:
            self.events.append({"event": kind, **fields})

    def name(self) -> str:
        """Return a new name of a call."""
        return str(next(self._numbers))

    def finished(self) -> list[Event]:
        """Return the events; a cancelled write is an orphan if it was committed later."""
        later: set[str] = set()
        for event in reversed(self.events):
            if event["event"] in {"commit", "target_write"}:
                later.add(event["call"])
            elif event["event"] == "cancelled":
                event["event"] = "orphan" if event["call"] in later else "error"
        return self.events


def _mark(mark: BackfillMark) -> Event:
    begun = mark.state is not BackfillState.PENDING
    return {"begun": begun, "cursor": mark.cursor, "complete": begun and mark.cursor >= mark.upto}


# ------------------------------------------------------------------ the stores


def _hook_disk(trace: Trace, disk: SourceDisk) -> None:
    """Note the transactions of the source, and the batches that are read of its journal."""
    store, change, force = disk.store, disk.change_state, disk.force
    prune, entries = disk.prune_some, disk.entries

    def stored(changes: Changes, revision: int) -> Any:
        rows = store(changes, revision)
        for call, deletes, number in trace.written.pop(id(changes), []):
            kind = "commit" if number else "unchanged"
            message = disk.messages.get(call.id)
            if number:
                trace.note(kind, call=call.name, id=call.id, revision=number, delete=deletes)
            elif message is not None:
                trace.note(kind, call=call.name, id=call.id, revision=message.revision)
        return rows

    def changed(state: MigrationState, rejournal_after: int | None, now: int) -> int:
        revision = change(state, rejournal_after, now)
        again = rejournal_after is not None and state.phase.journals
        trace.note(
            "state",
            phase=state.phase.value,
            completing=state.completing,
            base=state.base,
            rejournalled=again,
        )
        return revision

    def forced(ids: Sequence[str], now: int) -> int:
        last = force(ids, now)
        for place, key in enumerate(ids):
            trace.note("requeue", id=key, revision=last - len(ids) + place + 1)
        return last

    def pruned(upto: int) -> bool:
        before = list(disk.journal)
        more = prune(upto)
        removed = len(before) - len(disk.journal)
        if removed:
            trace.note("prune", upto=before[removed - 1].sequence)
        return more

    def read(after: int, limit: int) -> Any:
        found = entries(after, limit)
        if found:
            trace.note("journal", after=after, upto=found[-1].sequence)
        return found

    disk.store, disk.change_state, disk.force = stored, changed, forced  # type: ignore[method-assign]
    disk.prune_some, disk.entries = pruned, read  # type: ignore[method-assign]


def _hook_postgres(trace: Trace) -> None:
    """Note when PostgreSQL stops, starts and is set back."""
    postgres = trace.world.postgres
    crash, start, restore = postgres.crash, postgres.start, postgres.restore

    def crashed() -> None:
        if postgres.up:
            trace.note("down")
        crash()

    def started() -> None:
        if not postgres.up:
            trace.note("up")
        start()

    def restored(saved: Any, *, noticed: bool = False) -> None:
        restore(saved, noticed=noticed)
        record = postgres.record
        trace.note(
            "set_back",
            row={key: message.revision for key, message in postgres.rows.items()},
            tomb=dict(postgres.tombs),
            phase=record.phase.value if record else 1,
            session=trace.sessions.get(record.session, 0) if record else 0,
            applied=record.applied if record else 0,
            mark=_mark(record.backfill if record else BackfillMark()),
        )

    postgres.crash, postgres.start = crashed, started  # type: ignore[method-assign]
    postgres.restore = restored  # type: ignore[method-assign]


# ------------------------------------------------------------------ a server


class Watched:
    """Hooks the parts of one server."""

    def __init__(self, trace: Trace, live: LiveMigration, process: Process) -> None:
        """Note what this server does from now on."""
        self._trace = trace
        self._live = live
        self._process = process
        self._started = False
        self.session = int(process.name.partition("-")[2])
        trace.sessions[live._follower.lease.session] = self.session
        if self.session > 1 and trace.events[-1]["event"] != "crash":
            trace.note("crash")
        trace.note("launch", session=self.session)
        self._hook_start()
        self._hook_follower()
        self._hook_source(live._source)  # type: ignore[arg-type]
        self._hook_target(live._target)  # type: ignore[arg-type]
        self._hook_router()

    def note(self, kind: str, **fields: Any) -> None:
        """Add an event of this server, unless it is dead."""
        if not self._process.dead:
            self._trace.note(kind, **fields)

    # -------------------------------------------------------------- phase, gate, follower

    def _hook_start(self) -> None:
        live, situation = self._live, self._live._situation
        meet, end, enter = live._meet_the_target, live._end, situation.enter
        gate = live._router._gate
        closed = gate.closed

        async def met() -> None:
            self._start()
            await meet()

        def ended(record: Any) -> None:
            end(record)
            self._start()

        def entered(state: MigrationState) -> None:
            enter(state)
            if self._started:
                self.note("phase", phase=state.phase.value)

        @contextlib.asynccontextmanager
        async def held(within: float) -> AsyncIterator[None]:
            self.note("gate", open=False)
            try:
                async with closed(within):
                    yield
            finally:
                self.note("gate", open=True)

        live._meet_the_target, live._end = met, ended  # type: ignore[method-assign]
        situation.enter = entered  # type: ignore[method-assign]
        gate.closed = held  # type: ignore[method-assign]

    def _start(self) -> None:
        self._started = True
        self.note("start", phase=self._live.phase.value)

    def _hook_follower(self) -> None:
        follower = self._live._follower
        guard = follower._guard
        advance, stand, attach = follower._advance, follower._stand, follower._attach
        fence, contest, prove, copy = follower._fence, guard.contest, guard.prove, follower.copy

        def advanced(applied: int, entries: Any) -> None:
            self.note("applied", applied=applied)
            advance(applied, entries)

        def stood(standing: Any) -> None:
            if standing is not follower.standing:
                self.note("standing", standing=standing.value)
            stand(standing)

        async def attached() -> None:
            with _set(_ATTACHING, True):
                await attach()

        def fenced(error: Any) -> None:
            if not self._live._situation.state.completing:
                self.note("fenced")
            fence(error)

        def contested(blocker: Any) -> None:
            self.note("contested")
            contest(blocker)

        def proved(asked_at: float) -> None:
            before = guard.contested
            prove(asked_at)
            if before is not None and guard.contested is None:
                self.note("proved")

        async def copied(messages: Any, mark: BackfillMark) -> None:
            before = follower.mark
            if isinstance(messages, list):
                self._page([], before, mark)
            await copy(messages, mark)
            self.note("mark", before=_mark(before), after=_mark(mark))

        follower._advance, follower._stand = advanced, stood  # type: ignore[method-assign]
        follower._attach, follower._fence = attached, fenced  # type: ignore[method-assign]
        guard.contest, guard.prove = contested, proved  # type: ignore[method-assign]
        follower.copy = copied  # type: ignore[method-assign]

    def _page(self, ids: list[str], before: BackfillMark, after: BackfillMark) -> None:
        self.note("page", ids=ids, before=_mark(before), after=_mark(after))

    # -------------------------------------------------------------- the source

    def _hook_source(self, source: ModelSource) -> None:
        look, grow, write = source._look, source._grow, source._write
        read = self._live._backfill._read

        async def looked(see: Callable[[Any], T]) -> T:
            return await look(self._seeing("source", see))

        def grown(revision: int) -> None:
            if revision > source.committed:
                self.note("told", revision=revision)
            grow(revision)

        async def written(apply: Callable[[Changes], T], rows: int = 1) -> T:
            return await write(self._working_out(apply), rows)

        async def read_page(mark: BackfillMark, size: int) -> Any:
            with _set(_PAGE, mark):
                return await read(mark, size)

        source._look, source._grow, source._write = looked, grown, written  # type: ignore[method-assign, assignment]
        self._live._backfill._read = read_page  # type: ignore[method-assign]

    def _seeing(self, store: str, see: Callable[[Any], T]) -> Callable[[Any], T]:
        """Note what a read of one message sees, or the page that the backfill reads."""
        calls, mark = _READS.get(), _PAGE.get()

        def seen(rows: Any) -> T:
            found = see(rows)
            for call in list((calls or {}).values()):
                self._snapshot(store, call, rows.get(call.id), calls or {})
            if mark is not None and store == "source" and isinstance(found, Page):
                cursor = found.messages[-1].id if found.more else mark.upto
                ids = [message.id for message in found.messages]
                self._page(ids, mark, mark._replace(cursor=cursor))
            return found

        return seen

    def _snapshot(
        self, store: str, call: _Call, message: Message | None, calls: dict[str, _Call]
    ) -> None:
        # A read of the target that was given up may still be carried out.
        late = store == "target" and "source" in calls.get(call.id, call).name
        if not late:
            row = 0 if message is None else message.revision
            self.note("snapshot", call=call.name, row=row, **{"from": store})

    def _working_out(self, apply: Callable[[Changes], T]) -> Callable[[Changes], T]:
        """Note what each message of a write comes to, in its group."""
        calls = _WRITES.get() or []

        def worked_out(changes: Changes) -> T:
            before = {call.id: _revision(changes, call.id) for call in calls}
            result = apply(changes)
            done = self._trace.written.setdefault(id(changes), [])
            for call in calls:
                revision = _revision(changes, call.id)
                deletes = changes.after.get(call.id, call) is None
                done.append((call, deletes, revision if revision != before[call.id] else 0))
            return result

        return worked_out

    # -------------------------------------------------------------- the target

    def _hook_target(self, target: ModelTarget) -> None:
        look, ask, write, store = target._look, target._ask, target._write, target._store

        async def looked(see: Callable[[Any], T]) -> T:
            return await look(self._seeing("target", see))

        async def asked(work: Read | Write, patience: float | None = 17.0) -> object:
            return await ask(self._told(target, work), patience)

        async def written(ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
            return await write(ids, self._working_out(apply))

        def stored(changes: Changes) -> None:
            store(changes)
            for call, deletes, number in self._trace.written.pop(id(changes), []):
                facts: Event = {"call": call.name, "id": call.id, "revision": number}
                message = target._server.rows.get(call.id)
                if number:
                    self._trace.note("target_write", **facts, delete=deletes)
                elif message is not None:
                    self._trace.note("unchanged", **facts | {"revision": message.revision})

        target._look, target._ask = looked, asked  # type: ignore[method-assign, assignment]
        target._write, target._store = written, stored  # type: ignore[method-assign, assignment]
        for kind in ("claim", "set_phase", "finish", "renew", "release", "inspect"):
            setattr(target, kind, _sending(getattr(target, kind), lambda _, k=kind: _Sent(k)))
        target.apply = _sending(target.apply, _apply_of)  # type: ignore[method-assign]
        target.copy = _sending(target.copy, _copy_of)  # type: ignore[method-assign]

    def _told(self, target: ModelTarget, work: Read | Write) -> Read | Write:
        """Note a transaction when it commits; an inspection, when it reads."""
        sent = _SENT.get()
        if sent is None:
            return work
        if isinstance(work, Read):
            if sent.kind != "inspect" or not _ATTACHING.get():
                return work
            look = work.look

            def looked() -> object:
                record = target._server.record
                if record is not None:
                    self.note("inspect", applied=record.applied)
                return look()

            return Read(looked)
        execute = work.execute

        def executed() -> Callable[[], object]:
            commit = execute()

            def committed() -> object:
                done = commit()
                self._committed(target, sent)
                return done

            return committed

        return Write(work.locks, executed)

    def _committed(self, target: ModelTarget, sent: _Sent) -> None:
        server, record = target._server, target._server.record
        assert record is not None
        rows = [
            {
                "id": key,
                "row": server.rows[key].revision if key in server.rows else 0,
                "tomb": server.tombs.get(key, 0),
            }
            for key in sent.ids
        ]
        facts: dict[str, Event] = {
            "set_phase": {"phase": record.phase.value, "applied": record.applied},
            "apply": {"applied": record.applied, "rows": rows},
            "renew": {"applied": record.applied},
        }
        more = facts.get(sent.kind, {})
        if sent.before is not None and sent.after is not None:
            more = {"before": _mark(sent.before), "after": _mark(sent.after), "rows": rows}
        # Also of a server that is dead: its transaction commits late.
        self._trace.note(sent.kind, session=self.session, **more)

    # -------------------------------------------------------------- clients

    def _hook_router(self) -> None:
        router = self._live._router
        shadow = router._shadow
        source, target = self._live._source, self._live._target
        compare = shadow.compare

        def compared(*arguments: Any) -> None:
            # The comparison goes on in a task of its own: no part of the read.
            with _set(_READS, None):
                compare(*arguments)

        shadow.compare = compared  # type: ignore[method-assign]
        for store in (source, target):
            store.save = self._entering(store.save, lambda a: [a[0].id])  # type: ignore[method-assign]
            store.bulk_save = self._entering(  # type: ignore[method-assign]
                store.bulk_save, lambda a: list(dict.fromkeys(draft.id for draft in a[0]))
            )
            store.delete = self._entering(store.delete, lambda a: [a[0]], delete=True)  # type: ignore[method-assign]
        router.save = self._writing(router.save)  # type: ignore[method-assign]
        router.bulk_save = self._writing(router.bulk_save)  # type: ignore[method-assign]
        router.delete = self._writing(router.delete)  # type: ignore[method-assign]
        router.get = self._reading(router.get, lambda a: [a[0]])  # type: ignore[method-assign]
        router.batch_get = self._reading(router.batch_get, lambda a: list(dict.fromkeys(a[0])))  # type: ignore[method-assign]

    def _entering(
        self,
        write: Callable[..., Awaitable[T]],
        ids_of: Callable[[Any], list[str]],
        *,
        delete: bool = False,
    ) -> Callable[..., Awaitable[T]]:
        """Note the messages of a write that has passed the gate."""

        async def entered(*arguments: Any, **named: Any) -> T:
            calls = _WRITES.get()
            if calls is not None:
                for key in ids_of(arguments):
                    calls.append(_Call(self._trace.name(), key))
                    self.note("enter", call=calls[-1].name, id=key, delete=delete)
            return await write(*arguments, **named)

        return entered

    def _writing(self, write: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """Note how a client's write ends."""

        async def wrote(*arguments: Any, **named: Any) -> T:
            calls: list[_Call] = []
            with _set(_WRITES, calls):
                try:
                    result = await write(*arguments, **named)
                except asyncio.CancelledError:
                    self._end(calls, "cancelled")
                    raise
                except Exception:
                    self._end(calls, "error")
                    raise
            both = isinstance(result, SaveResult) and len(result.durable_on) == 2
            revisions = self._revisions(calls)
            for call in calls:
                if call.name in revisions:
                    self.note("ack", call=call.name, revision=revisions[call.name], both=both)
                else:
                    self.note("error", call=call.name)
            return result

        return wrote

    def _end(self, calls: list[_Call], kind: str) -> None:
        for call in calls:
            self.note(kind, call=call.name)

    def _revisions(self, calls: list[_Call]) -> dict[str, int]:
        """Return the revision that each call was committed with, or found."""
        wanted = {call.name for call in calls}
        found: dict[str, int] = {}
        for event in reversed(self._trace.events):
            if len(found) == len(wanted) or event["event"] == "launch":
                break
            if event["event"] in {"commit", "unchanged", "target_write"}:
                if event["call"] in wanted:
                    found[event["call"]] = event["revision"]
        return found

    def _reading(
        self, read: Callable[..., Awaitable[T]], ids_of: Callable[[Any], list[str]]
    ) -> Callable[..., Awaitable[T]]:
        """Note what a client's read is answered with."""

        async def answered(*arguments: Any, **named: Any) -> T:
            calls = {key: _Call(self._trace.name(), key) for key in ids_of(arguments)}
            for call in calls.values():
                self.note("read", call=call.name, id=call.id)
            try:
                with _set(_READS, calls):
                    result = await read(*arguments, **named)
            except BaseException as exc:
                missing = type(exc).__name__ == "NotFoundError"
                self._answer(calls, {} if missing else None)
                raise
            found = result if isinstance(result, dict) else {result.id: result}  # type: ignore[attr-defined]
            self._answer(calls, {key: message.revision for key, message in found.items()})
            return result

        return answered

    def _answer(self, calls: dict[str, _Call], found: dict[str, int] | None) -> None:
        for key, call in list(calls.items()):
            if found is None:
                self.note("read_error", call=call.name)
            else:
                self.note("answer", call=call.name, row=found.get(key, 0))
        calls.clear()


def _revision(changes: Changes, key: str) -> int:
    """Return the revision of the newest change of an id in a group; 0: not changed."""
    message = changes.after.get(key)
    if message is not None:
        return message.revision
    return changes.buried.get(key, 0) if key in changes.after else 0


def _sending(
    send: Callable[..., Awaitable[T]], sent: Callable[[Any], _Sent]
) -> Callable[..., Awaitable[T]]:
    """Let a transaction be known by what it is for."""

    async def sending(*arguments: Any, **named: Any) -> T:
        with _set(_SENT, sent((arguments, named))):
            return await send(*arguments, **named)

    return sending


def _apply_of(given: Any) -> _Sent:
    return _Sent("apply", tuple(dict.fromkeys(entry.id for entry in given[0][1])))


def _copy_of(given: Any) -> _Sent:
    arguments, named = given
    rows = getattr(arguments[1], "rows", arguments[1])
    return _Sent("copy", tuple(row.id for row in rows), named.get("before"), arguments[2])


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """Set a variable; not by a token, as a dead coroutine may be closed in another context."""
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)
