"""Hooks on the stores of one server: commits, snapshots, transactions to the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.model import Message, NewMessage, Page
from sagastore_server.storage.replication import BackfillMark
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.models.source import ModelSource
from tests.simulation.models.target import ModelTarget
from tests.simulation.models.transaction import Read, Write
from tests.simulation.tracing.trace import (
    ATTACHING,
    PAGE,
    READS,
    SENT,
    WRITES,
    Call,
    Event,
    Sent,
    Trace,
    hook,
    mark_of,
    sending,
    setting,
)

T = TypeVar("T")


class Notes(Protocol):
    """Records the events of a server."""

    session: int

    def note(self, kind: str, **fields: Any) -> None:
        """Add an event."""

    def page(self, ids: list[str], before: BackfillMark, after: BackfillMark) -> None:
        """Record a page that the backfill reads."""


class ServerStores:
    """Records the use of both stores by one server."""

    def __init__(self, server: Notes, trace: Trace, live: MigratingService) -> None:
        """Start recording."""
        source, target = live._source, live._target
        assert isinstance(source, ModelSource)
        assert isinstance(target, ModelTarget)
        self._server = server
        self._trace = trace
        self._live = live
        self._hook_source(source)
        self._hook_target(target)

    def _hook_source(self, source: ModelSource) -> None:
        look, grow, write = source._look, source._grow, source._write
        read = self._live._backfill._read

        async def looked(see: Callable[[Any], T]) -> T:
            return await look(self._seeing("source", see))

        def on_revision(revision: int) -> None:
            if revision > source.committed:
                self._server.note("committed", revision=revision)
            grow(revision)

        async def written(apply: Callable[[Changes], T], rows: int = 1) -> T:
            return await write(self._working_out(apply), rows)

        async def read_page(mark: BackfillMark, size: int) -> Any:
            with setting(PAGE, mark):
                return await read(mark, size)

        hook(source, _look=looked, _grow=on_revision, _write=written)
        hook(self._live._backfill, _read=read_page)

    def _seeing(self, store: str, see: Callable[[Any], T]) -> Callable[[Any], T]:
        """Record what a read of one message returns, or the page that the backfill reads."""
        calls, mark = READS.get(), PAGE.get()

        def seen(rows: Any) -> T:
            found = see(rows)
            for call in list((calls or {}).values()):
                self._snapshot(store, call, rows.get(call.id), calls or {})
            if mark is not None and store == "source" and isinstance(found, Page):
                cursor = found.messages[-1].id if found.more else mark.upto
                ids = [message.id for message in found.messages]
                self._server.page(ids, mark, mark._replace(cursor=cursor))
            return found

        return seen

    def _snapshot(
        self, store: str, call: Call, message: Message | None, calls: dict[str, Call]
    ) -> None:
        # A read of the target that the client gave up may still be executed.
        late = store == "target" and "source" in calls.get(call.id, call).name
        if not late:
            row = 0 if message is None else message.revision
            self._server.note("snapshot", call=call.name, row=row, **{"from": store})

    def _working_out(self, apply: Callable[[Changes], T]) -> Callable[[Changes], T]:
        """Record the effect of a write on each message of its group."""
        calls = WRITES.get() or []

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

    def _hook_target(self, target: ModelTarget) -> None:
        look, ask, write, store = target._look, target._ask, target._change, target._store

        async def looked(see: Callable[[Any], T]) -> T:
            return await look(self._seeing("target", see))

        async def asked(work: Read | Write, patience: float | None = 17.0) -> object:
            return await ask(self._traced(target, work), patience)

        async def written(
            ids: Sequence[str],
            sessions: Sequence[str],
            apply: Callable[[Changes], T],
            messages: Sequence[NewMessage] = (),
        ) -> T:
            return await write(ids, sessions, self._working_out(apply), messages)

        def stored(changes: Changes) -> None:
            store(changes)
            for call, deletes, number in self._trace.written.pop(id(changes), []):
                facts: Event = {"call": call.name, "id": call.id, "revision": number}
                message = target._server.rows.get(call.id)
                if number:
                    self._trace.note("target_write", **facts, delete=deletes)
                elif message is not None:
                    self._trace.note("unchanged", **facts | {"revision": message.revision})

        hook(target, _look=looked, _ask=asked, _change=written, _store=stored)
        for kind in ("claim", "set_phase", "finish", "renew", "release", "inspect"):
            hook(target, **{kind: sending(getattr(target, kind), _named(kind))})
        hook(target, apply=sending(target.apply, _apply_of))
        hook(target, copy=sending(target.copy, _copy_of))

    def _traced(self, target: ModelTarget, work: Read | Write) -> Read | Write:
        """Record a transaction when it commits, and an inspection when it reads."""
        sent = SENT.get()
        if sent is None:
            return work
        if isinstance(work, Read):
            attaching = sent.kind == "inspect" and ATTACHING.get()
            return self._inspecting(target, work) if attaching else work
        execute = work.execute

        def executed() -> Callable[[], object]:
            commit = execute()

            def committed() -> object:
                done = commit()
                self._committed(target, sent)
                return done

            return committed

        return Write(work.locks, executed)

    def _inspecting(self, target: ModelTarget, work: Read) -> Read:
        look = work.look

        def looked() -> object:
            record = target._server.record
            if record is not None:
                self._server.note("inspect", applied=record.applied)
            return look()

        return Read(looked)

    def _committed(self, target: ModelTarget, sent: Sent) -> None:
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
            more = {"before": mark_of(sent.before), "after": mark_of(sent.after), "rows": rows}
        # Dead servers included: a transaction may commit late.
        self._trace.note(sent.kind, session=self._server.session, **more)


def _revision(changes: Changes, key: str) -> int:
    """Return the revision of the newest change of an id in a group; 0: unchanged."""
    message = changes.after.get(key)
    if message is not None:
        return message.revision
    return changes.buried.get(key, 0) if key in changes.after else 0


def _named(kind: str) -> Callable[[Any], Sent]:
    return lambda _: Sent(kind)


def _apply_of(given: Any) -> Sent:
    messages = [entry.id for entry in given[0][1] if entry.kind is RecordKind.MESSAGE]
    return Sent("apply", tuple(dict.fromkeys(messages)))


def _copy_of(given: Any) -> Sent:
    (_, messages, mark, before, *_), _ = given
    rows = getattr(messages, "rows", messages)
    return Sent("copy", tuple(row.id for row in rows), before, mark)
