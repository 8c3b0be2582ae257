"""Client that records every call in a history."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from sagastore import (
    AsyncClient,
    BulkAck,
    Durability,
    Message,
    OnConflict,
    Order,
    RetryPolicy,
    SagaStoreError,
    SaveResult,
    UnavailableError,
)
from tools.chaos.history import History, Operation
from tools.chaos.turns import PREFIX
from tools.chaos.values import Shown, Value, shown

T = TypeVar("T")

_DEFINITE = {"NOT_FOUND", "ABORTED", "ALREADY_EXISTS", "INVALID_ARGUMENT"}
_WITH_REVISION = {"ABORTED", "ALREADY_EXISTS"}

_attempts: ContextVar[list[str]] = ContextVar("attempts")
"""Log messages of the client library about retries of the current call."""


class _AttemptCounter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        noted = _attempts.get(None)
        if noted is not None and " is retried for up to " in said:
            noted.append(said)


@contextmanager
def counted_attempts() -> Iterator[None]:
    """Count the attempts of each call from the client library's log.

    The number bounds what may have happened: a request that was sent once can take effect once.
    Results of calls do not contain it.
    """
    log, handler = logging.getLogger("sagastore"), _AttemptCounter()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


class RecordingClient:
    """Client that records each call as one operation.

    ``tries`` is the maximum number of attempts of the library; with 1, each attempt is an
    operation. With more, use it inside `counted_attempts`, so that operations contain the number of
    attempts. Every method returns None if the call failed, whatever the reason.
    """

    def __init__(
        self,
        targets: str,
        history: History,
        number: int,
        *,
        timeout: float,
        tries: int = 1,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Create the client without connecting; ``retry`` replaces a policy of ``tries``."""
        retry = retry or RetryPolicy(max_attempts=tries, initial_backoff=0.05, max_backoff=0.3)
        self.client = AsyncClient(targets, timeout=timeout, retry=retry)
        self.number = number
        self.tries = tries
        self._history = history
        self._timeout = timeout

    async def close(self) -> None:
        await self.client.close()

    def _begin(self, kind: str, args: Mapping[str, Any]) -> Operation:
        said = {name: value for name, value in args.items() if value is not None}
        return self._history.begin(self.number, kind, said | self._tries())

    def _tries(self) -> dict[str, int]:
        return {} if self.tries == 1 else {"tries": self.tries}

    async def _call(
        self,
        kind: str,
        args: Mapping[str, Any],
        work: Callable[[], Awaitable[T]],
        answer: Callable[[T], Mapping[str, Any]],
    ) -> T | None:
        operation = self._begin(kind, args)
        noted: list[str] = []
        _attempts.set(noted)
        try:
            result = await work()
        except SagaStoreError as exc:
            self._count(operation, noted)
            fail(operation, exc)
            return None
        except BaseException:
            operation.unknown("CANCELLED")
            raise
        self._count(operation, noted)
        operation.ok(answer(result))
        return result

    def _count(self, operation: Operation, noted: list[str]) -> None:
        """Record the number of attempts of a finished call."""
        if self.tries > 1:
            operation.args = {**operation.args, "tries": 1 + len(noted)}

    # ------------------------------------------------------------------ writes

    async def save(
        self, message: Message, value: Value, *, if_revision: int | None, both: bool
    ) -> SaveResult | None:
        args = {
            "value": value.as_json(),
            "if_revision": if_revision,
            "durability": "BOTH" if both else None,
        }
        durability = Durability.BOTH if both else Durability.PRIMARY
        return await self._call(
            "Save",
            args,
            lambda: self.client.save(message, if_revision=if_revision, durability=durability),
            _saved,
        )

    async def delete(self, id: str, *, if_revision: int | None) -> bool:
        """Delete a message; return whether the deletion was acknowledged."""

        async def delete() -> bool:
            await self.client.delete(id, if_revision=if_revision)
            return True

        args = {"id": id, "if_revision": if_revision}
        return bool(await self._call("Delete", args, delete, lambda _: {}))

    async def bulk(
        self,
        batches: Sequence[Sequence[tuple[Message, Value]]],
        *,
        skip: bool,
        invalid: Message | None,
        cut_after: int,
    ) -> int:
        """Save batches of one size over one stream; close the stream after ``cut_after`` answers.

        ``invalid`` is a message to be rejected. It is sent with the first batch, which must then be
        the only one. Returns the number of acknowledged batches.
        """
        assert self.tries == 1, "the library retries batches an unknown number of times"
        begun: list[Operation] = []
        size = len(batches[0]) + (invalid is not None)
        code = "CUT"
        stream = self.client.bulk_save_stream(
            self._feed(batches, begun, skip=skip, invalid=invalid),
            on_conflict=OnConflict.SKIP if skip else OnConflict.REPLACE,
            batch_size=size,
            timeout=self._timeout,
        )
        acknowledged = 0
        try:
            async with aclosing(stream) as answers:
                async for ack in answers:
                    begun[acknowledged].ok(_acknowledged(ack))
                    acknowledged += 1
                    if acknowledged == cut_after:
                        break
        except SagaStoreError as exc:
            code = exc.code
            if isinstance(exc, UnavailableError) and exc.unsent and not acknowledged:
                for operation in begun:
                    operation.refused(code, "UNSENT")
        finally:
            for operation in begun[acknowledged:]:
                if not operation.closed:
                    operation.unknown(code)
        return acknowledged

    async def _feed(
        self,
        batches: Sequence[Sequence[tuple[Message, Value]]],
        begun: list[Operation],
        *,
        skip: bool,
        invalid: Message | None,
    ) -> AsyncIterator[Message]:
        """Yield the messages; the operation of a batch begins before its first message is sent."""
        for number, batch in enumerate(batches):
            args: dict[str, Any] = {"values": [value.as_json() for _, value in batch]}
            args |= {"skip": True} if skip else {}
            args |= {"invalid": 1} if invalid is not None and number == 0 else {}
            begun.append(self._begin("BulkSave", args))
            if invalid is not None and number == 0:
                yield invalid
            for message, _ in batch:
                yield message

    # ------------------------------------------------------------------ reads

    async def get(self, id: str) -> Message | None:
        return await self._call(
            "Get", {"id": id}, lambda: self.client.get(id), lambda one: {"items": [shown(one)]}
        )

    async def batch_get(self, ids: Sequence[str]) -> bool:
        """Read several messages."""
        result = await self._call(
            "BatchGet",
            {"ids": list(ids)},
            lambda: self.client.batch_get(ids),
            lambda one: {"items": list(map(shown, one.messages)), "missing": one.missing_ids},
        )
        return result is not None

    async def page(
        self, args: Mapping[str, Any], token: str
    ) -> tuple[list[Any] | None, str] | None:
        """Read a page of a list or search; return the place of its last message, and the next
        token.

        ``args`` are those of the operation: ``session``, ``word``, ``tag``, ``order``, ``size``,
        and ``after``, the place of the last message of the previous page.
        """
        kind = "List" if args.get("list") else "Search"
        pager = self._list(args) if kind == "List" else self._search(args)
        page = await self._call(
            kind,
            args,
            lambda: pager(token),
            lambda one: {
                "items": [shown(message) for message in _messages(one)],
                "more": bool(one.next_page_token),
            },
        )
        if page is None:
            return None
        found = _messages(page)
        last = shown(found[-1]) if found else None
        return [last.timestamp, last.sequence] if last else None, page.next_page_token

    def _list(self, args: Mapping[str, Any]) -> Callable[[str], Awaitable[Any]]:
        newest = args["order"] == "NEWEST"
        return self.client.list(args["session"], newest_first=newest, page_size=args["size"]).page

    def _search(self, args: Mapping[str, Any]) -> Callable[[str], Awaitable[Any]]:
        tag = args.get("tag")
        return self.client.search(
            args.get("word") or "",
            tags=() if tag is None else (tag,),
            session_id=args.get("session"),
            order=Order[args["order"]],
            page_size=args["size"],
        ).page

    async def export(
        self, number: int, *, after: int, token: str, size: int, batches: int
    ) -> tuple[int, str, bool]:
        """Read an export until it ends or fails, or ``batches`` batches have arrived.

        Returns the last sequence and token received, and whether the export is complete.
        """
        operation = self._begin("Export", {"export": number, "after": after, "size": size})
        items: list[Shown] = []
        code = "CUT"
        try:
            stream = self.client.export_batches(
                resume_token=token, batch_size=size, timeout=self._timeout
            )
            async with aclosing(stream) as answers:
                async for batch in answers:
                    recorded = (one for one in batch.messages if not one.id.startswith(PREFIX))
                    items += map(shown, recorded)
                    token, batches = batch.resume_token, batches - 1
                    if not batches:
                        return _last(items, after), token, False
            operation.ok({"items": items, "done": True})
        except SagaStoreError as exc:
            code = exc.code
        finally:
            if not operation.closed:
                operation.unknown(code, {"items": items, "done": False})
        return _last(items, after), token, operation.code == ""


def fail(operation: Operation, error: SagaStoreError) -> None:
    """Record a failed call: refused without effect, or of unknown outcome."""
    ours = error.domain == "sagastore"
    if ours and error.code in _DEFINITE:
        answer = {}
        if error.code in _WITH_REVISION:
            stored = error.metadata.get("stored_revision")
            answer = {"stored_revision": None if stored is None else int(stored)}
        operation.refused(error.code, error.reason, answer)
    elif isinstance(error, UnavailableError) and error.unsent:
        operation.refused(error.code, "UNSENT")
    else:
        operation.unknown(error.code, reason=error.reason)


def _saved(result: SaveResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "revision": result.revision,
        "created": result.created,
        "durable_on": sorted(store.name for store in result.durable_on),
    }


def _acknowledged(ack: BulkAck) -> dict[str, int]:
    return {
        "saved": ack.saved,
        "unchanged": ack.unchanged,
        "skipped": ack.skipped,
        "rejected": len(ack.rejected),
    }


def _messages(page: Any) -> list[Message]:
    return [getattr(item, "message", item) for item in page.items]


def _last(items: Sequence[Shown], after: int) -> int:
    return items[-1].sequence if items else after
