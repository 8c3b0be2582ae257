"""Trace of a round, and helpers of the hooks that record it."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.replication import BackfillMark
from tests.simulation.world import World

T = TypeVar("T")
Event = dict[str, Any]


class Call(NamedTuple):
    """Write or read of one message."""

    name: str
    id: str


class Sent(NamedTuple):
    """Transaction in transit to the target."""

    kind: str
    ids: tuple[str, ...] = ()
    before: BackfillMark | None = None
    after: BackfillMark | None = None


WRITES: contextvars.ContextVar[list[Call] | None] = contextvars.ContextVar("writes", default=None)
READS: contextvars.ContextVar[dict[str, Call] | None] = contextvars.ContextVar(
    "reads", default=None
)
SENT: contextvars.ContextVar[Sent | None] = contextvars.ContextVar("sent", default=None)
PAGE: contextvars.ContextVar[BackfillMark | None] = contextvars.ContextVar("page", default=None)
ATTACHING: contextvars.ContextVar[bool] = contextvars.ContextVar("attaching", default=False)


class Trace:
    """Events of a round."""

    def __init__(self, world: World) -> None:
        """Start without events."""
        self.world = world
        self.events: list[Event] = []
        self.sessions: dict[str, int] = {"": 0}
        """Number of the process, by the session of its lease."""
        self._numbers = itertools.count(1)
        self.written: dict[int, list[tuple[Call, bool, int]]] = {}
        """Effects of the writes in a group: call, whether it deletes, revision."""

    def begin(self, rows: dict[str, int], revision: int) -> None:
        """Record the contents of the file before the round."""
        self.events.insert(0, {"event": "begin", "rows": rows, "revision": revision})

    def note(self, kind: str, **fields: Any) -> None:
        """Add an event, unless the round is over."""
        if not self.world.log.over:
            self.events.append({"event": kind, **fields})

    def name(self) -> str:
        """Return a new name for a call."""
        return str(next(self._numbers))

    def finished(self) -> list[Event]:
        """Return the events; a cancelled write is an orphan if it was committed later."""
        later: set[str] = set()
        for event in reversed(self.events):
            if event["event"] in {"commit", "target_write"}:
                later.add(event["call"])
            elif event["event"] in {"cancelled", "error"}:
                event["event"] = "orphan" if event["call"] in later else "error"
        ended = {event["call"] for event in self.events if event["event"] == "error"}
        # No caller receives the answer of an unchanged orphan.
        return [
            event
            for event in self.events
            if event["event"] != "unchanged" or event["call"] not in ended
        ]


def mark_of(mark: BackfillMark) -> Event:
    begun = mark.state is not BackfillState.PENDING
    return {"begun": begun, "cursor": mark.cursor, "complete": begun and mark.cursor >= mark.upto}


def hook(owner: Any, **replacements: Any) -> None:
    """Replace methods of an object."""
    for name, replacement in replacements.items():
        setattr(owner, name, replacement)


def sending(
    send: Callable[..., Awaitable[T]], sent: Callable[[Any], Sent]
) -> Callable[..., Awaitable[T]]:
    """Attach the purpose of a transaction to its context."""

    async def sending(*arguments: Any, **named: Any) -> T:
        with setting(SENT, sent((arguments, named))):
            return await send(*arguments, **named)

    return sending


@contextlib.contextmanager
def setting(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """Set a variable without a token, because a dead coroutine may be closed in another context."""
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)
