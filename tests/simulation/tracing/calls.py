"""Hooks on the router and the stores behind it: requests of clients and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.model import SaveResult
from sagastore_server.storage.sessions import AppendResult
from tests.simulation.models.process import Process
from tests.simulation.tracing.trace import READS, WRITES, Call, Trace, hook, setting

T = TypeVar("T")


class ClientCalls:
    """Records the calls of clients to one server."""

    def __init__(self, trace: Trace, live: MigratingService, process: Process) -> None:
        """Start recording."""
        self._trace = trace
        self._live = live
        self._process = process
        self._hook_router()

    def note(self, kind: str, **fields: Any) -> None:
        """Add an event of this server, unless it is dead."""
        if not self._process.dead:
            self._trace.note(kind, **fields)

    def _hook_router(self) -> None:
        router = self._live._router
        shadow = router._shadow
        source, target = self._live._source, self._live._target
        compare = shadow.compare

        def compared(*arguments: Any) -> None:
            # The shadow comparison continues in a separate task, which is not part of the read.
            with setting(READS, None):
                compare(*arguments)

        hook(shadow, compare=compared)
        for store in (source, target):
            hook(
                store,
                save=self._entering(store.save, lambda a: [a[0].id]),
                bulk_save=self._entering(store.bulk_save, _ids_of_drafts),
                append=self._entering(store.append, lambda a: _ids_of_drafts(a[1:])),
                delete=self._entering(store.delete, lambda a: [a[0]], delete=True),
            )
        hook(
            router,
            save=self._writing(router.save),
            bulk_save=self._writing(router.bulk_save),
            append=self._writing(router.append),
            delete=self._writing(router.delete),
            get=self._reading(router.get, lambda a: [a[0]]),
            batch_get=self._reading(router.batch_get, lambda a: list(dict.fromkeys(a[0]))),
        )

    def _entering(
        self,
        write: Callable[..., Awaitable[T]],
        ids_of: Callable[[Any], list[str]],
        *,
        delete: bool = False,
    ) -> Callable[..., Awaitable[T]]:
        """Record the messages of a write that has passed the fence."""

        async def entered(*arguments: Any, **named: Any) -> T:
            calls = WRITES.get()
            if calls is not None:
                for key in ids_of(arguments):
                    calls.append(Call(self._trace.name(), key))
                    self.note("enter", call=calls[-1].name, id=key, delete=delete)
            return await write(*arguments, **named)

        return entered

    def _writing(self, write: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """Record how a client's write ends."""

        async def wrote(*arguments: Any, **named: Any) -> T:
            calls: list[Call] = []
            with setting(WRITES, calls):
                try:
                    result = await write(*arguments, **named)
                except asyncio.CancelledError:
                    self._end(calls, "cancelled")
                    raise
                except Exception:
                    self._end(calls, "error")
                    raise
            both = isinstance(result, SaveResult | AppendResult) and len(result.durable_on) == 2
            revisions = self._revisions(calls)
            for call in calls:
                if call.name in revisions:
                    self.note("ack", call=call.name, revision=revisions[call.name], both=both)
                else:
                    self.note("error", call=call.name)
            return result

        return wrote

    def _end(self, calls: list[Call], kind: str) -> None:
        for call in calls:
            self.note(kind, call=call.name)

    def _revisions(self, calls: list[Call]) -> dict[str, int]:
        """Return the revision that each call committed or found."""
        wanted = {call.name for call in calls}
        found: dict[str, int] = {}
        for event in reversed(self._trace.events):
            if len(found) == len(wanted) or event["event"] == "launch":
                break
            done = event["event"] in {"commit", "unchanged", "target_write"}
            if done and event["call"] in wanted:
                found[event["call"]] = event["revision"]
        return found

    def _reading(
        self, read: Callable[..., Awaitable[T]], ids_of: Callable[[Any], list[str]]
    ) -> Callable[..., Awaitable[T]]:
        """Record the answer of a client's read."""

        async def answered(*arguments: Any, **named: Any) -> T:
            calls = {key: Call(self._trace.name(), key) for key in ids_of(arguments)}
            for call in calls.values():
                self.note("read", call=call.name, id=call.id)
            try:
                with setting(READS, calls):
                    result = await read(*arguments, **named)
            except BaseException as exc:
                missing = type(exc).__name__ == "NotFoundError"
                self._answer(calls, {} if missing else None)
                raise
            answer: Any = result
            found = answer if isinstance(answer, dict) else {answer.id: answer}
            self._answer(calls, {key: message.revision for key, message in found.items()})
            return result

        return answered

    def _answer(self, calls: dict[str, Call], found: dict[str, int] | None) -> None:
        for key, call in list(calls.items()):
            if found is None:
                self.note("read_error", call=call.name)
            else:
                self.note("answer", call=call.name, row=found.get(key, 0))
        calls.clear()


def _ids_of_drafts(arguments: Any) -> list[str]:
    return list(dict.fromkeys(draft.id for draft in arguments[0]))
