"""Register model: a message id is a register with a value, an existence and a revision.

A call is allowed in a state and leads to another state, or is not allowed. Answers do not contain
every revision: that of a deletion is never returned, that of an unanswered write only when it is
read. An unknown revision is bounded from below until the first answer fixes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

NEVER = math.inf
"""End of a call that may take effect at any time, or never."""


class Action(Enum):
    """Effect or observation of a call."""

    SAVE = auto()
    SAVE_IF_NEW = auto()
    """Part of a bulk save that skips existing messages."""
    DELETE = auto()
    DELETE_IF_THERE = auto()
    """Deletion by a client that retries and treats NOT_FOUND as success."""
    FIND = auto()
    """The value exists."""
    ABSENT = auto()
    """No message exists."""
    OUTSIDE = auto()
    """No message exists, or its value is not in ``among``: a list, search or export lacks it."""
    EXISTS = auto()
    """Refused because a message exists."""
    MISMATCH = auto()
    """Refused because the stored revision is not ``guard``."""


WRITES = frozenset({Action.SAVE, Action.SAVE_IF_NEW, Action.DELETE, Action.DELETE_IF_THERE})
SAVES = frozenset({Action.SAVE, Action.SAVE_IF_NEW})


@dataclass(eq=False, slots=True)
class Call:
    """Part of an operation that concerns one id."""

    operation: int
    """Number of the operation in the history."""
    action: Action
    start: int
    end: float
    must: bool = True
    """False: the call may have taken effect at any time after its start, or not at all."""
    digest: str | None = None
    revision: int | None = None
    """Revision in the answer: stored, read, or conflicting."""
    guard: int | None = None
    created: bool | None = None
    repeated: bool = False
    """Sent more than once by the client library, which takes the stored message for its own if it
    equals the one it sent."""
    changed: bool | None = None
    """Whether the answer says that the save changed the message."""
    among: frozenset[str] = frozenset()
    forced: bool = False
    """Not acknowledged, but part of a batch of which a message was observed."""

    @property
    def writes(self) -> bool:
        """Whether the call can change the state."""
        return self.action in WRITES


class State(NamedTuple):
    """State of an id."""

    digest: str | None = None
    """None: no message is stored."""
    revision: int | None = None
    """None: no message is stored, or its revision is unknown and greater than ``floor``."""
    floor: int = 0
    """Every later change has a greater revision."""


def step(call: Call, state: State) -> State | None:
    """Return the state after a call, or None if the call is not allowed in this state."""
    if call.action is Action.SAVE:
        return _save(call, state)
    if call.action is Action.SAVE_IF_NEW:
        return _skip(call, state) if state.digest is not None else _save(call, state)
    if call.action in {Action.DELETE, Action.DELETE_IF_THERE}:
        return _delete(call, state)
    return _observe(call, state)


def dominates(one: State | None, other: State) -> bool:
    """Return whether ``one`` allows every continuation that ``other`` allows."""
    if one is None or one.digest != other.digest:
        return False
    if one.revision is not None or other.digest is None:
        return one.revision == other.revision and one.floor <= other.floor
    return one.floor < (other.floor + 1 if other.revision is None else other.revision)


def is_settled(call: Call) -> bool:
    """Return whether a call that changes nothing now cannot have another effect later."""
    return not call.writes or (call.action is Action.SAVE and call.revision is not None)


def _save(call: Call, state: State) -> State | None:
    guarded = _guard(call, state)
    if guarded is None:
        confirmed = call.repeated and state.digest == call.digest
        return _known(state, call.revision) if confirmed else None
    if guarded.digest == call.digest:
        if call.created or call.changed:
            return None
        return _known(guarded, call.revision)
    if call.changed is False or call.created not in {None, guarded.digest is None}:
        return None
    if call.revision is not None:
        lowest = guarded.floor if guarded.revision is None else guarded.revision
        return State(call.digest, call.revision, call.revision) if call.revision > lowest else None
    return State(call.digest, None, guarded.floor)


def _skip(call: Call, state: State) -> State | None:
    return None if call.changed else state


def _delete(call: Call, state: State) -> State | None:
    if state.digest is None:
        return state if call.action is Action.DELETE_IF_THERE else None
    guarded = _guard(call, state)
    return None if guarded is None else State(None, None, guarded.floor)


def _guard(call: Call, state: State) -> State | None:
    """Return the state with the revision that the guard requires, if that is possible."""
    if call.guard is None:
        return state
    if call.guard == 0:
        return state if state.digest is None else None
    return None if state.digest is None else _known(state, call.guard)


def _known(state: State, revision: int | None) -> State | None:
    """Return the state of a message after an answer contained its revision."""
    if revision is None:
        return state
    if state.revision is None:
        return State(state.digest, revision, revision) if revision > state.floor else None
    return state if state.revision == revision else None


def _observe(call: Call, state: State) -> State | None:
    if call.action is Action.FIND:
        return _known(state, call.revision) if state.digest == call.digest else None
    if call.action is Action.ABSENT:
        return state if state.digest is None else None
    if call.action is Action.OUTSIDE:
        return state if state.digest not in call.among else None
    if state.digest is None:
        return state if call.action is Action.MISMATCH and call.revision is None else None
    if call.action is Action.MISMATCH and call.guard in {call.revision, state.revision}:
        return None
    return _known(state, call.revision)
