"""The events of a round, and what the hooks that note them share."""

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
    """A write of one message, or a read of one."""

    name: str
    id: str


class Sent(NamedTuple):
    """A transaction on its way to the target."""

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
    """The events of a round."""

    def __init__(self, world: World) -> None:
        """Begin without events."""
        self.world = world
        self.events: list[Event] = []
        self.sessions: dict[str, int] = {"": 0}
        """Number of the process, by the session of its lease."""
        self._numbers = itertools.count(1)
        self.written: dict[int, list[tuple[Call, bool, int]]] = {}
        """What the writes of a group did: the call, whether it deletes, and the revision."""

    def begin(self, rows: dict[str, int], revision: int) -> None:
        """Note what the file holds before the round."""
        self.events.insert(0, {"event": "begin", "rows": rows, "revision": revision})

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
            elif event["event"] in {"cancelled", "error"}:
                event["event"] = "orphan" if event["call"] in later else "error"
        ended = {event["call"] for event in self.events if event["event"] == "error"}
        # Nobody hears that such a write has changed nothing.
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
    """Let a transaction be known by what it is for."""

    async def sending(*arguments: Any, **named: Any) -> T:
        with setting(SENT, sent((arguments, named))):
            return await send(*arguments, **named)

    return sending


@contextlib.contextmanager
def setting(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """Set a variable; not by a token, as a dead coroutine may be closed in another context."""
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)
