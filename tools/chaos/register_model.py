"""The model: one message id is a register with a value, an existence and a revision.

A call on it is allowed in a state, and leads to another, or is not allowed. Answers do not
tell every revision (a deletion's is never told, that of a write without an answer only when
it is read), so a revision may be unknown and is then bounded from below; the first answer
that tells it fixes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

NEVER = math.inf
"""The end of a call that may have its effect at any time, or never."""


class Action(Enum):
    """What a call does, or has seen."""

    SAVE = auto()
    SAVE_IF_NEW = auto()
    """Of a bulk save that skips what is there."""
    DELETE = auto()
    DELETE_IF_THERE = auto()
    """Of a client that repeats by itself, and takes NOT_FOUND for success."""
    FIND = auto()
    """The value is there."""
    ABSENT = auto()
    """Nothing is there."""
    OUTSIDE = auto()
    """What is there, if anything, is none of ``among``: a list, search or export lacks it."""
    EXISTS = auto()
    """Refused since something is there."""
    MISMATCH = auto()
    """Refused since what is there has not the revision ``guard``."""


WRITES = frozenset({Action.SAVE, Action.SAVE_IF_NEW, Action.DELETE, Action.DELETE_IF_THERE})
SAVES = frozenset({Action.SAVE, Action.SAVE_IF_NEW})


@dataclass(eq=False, slots=True)
class Call:
    """One operation, as far as it is about one id."""

    operation: int
    """Its number in the history."""
    action: Action
    start: int
    end: float
    must: bool = True
    """False: it may have had its effect, at any time after its start, or not."""
    digest: str | None = None
    revision: int | None = None
    """That the answer told: of what was stored, found, or stood in the way."""
    guard: int | None = None
    created: bool | None = None
    changed: bool | None = None
    """Whether the answer said that the save changed something."""
    among: frozenset[str] = frozenset()
    forced: bool = False
    """Not acknowledged, but part of a batch of which something was seen."""

    @property
    def writes(self) -> bool:
        """Whether it can change something."""
        return self.action in WRITES


class State(NamedTuple):
    """What is stored under an id."""

    digest: str | None = None
    """None: nothing."""
    revision: int | None = None
    """None: nothing is stored, or it is not known yet and greater than ``floor``."""
    floor: int = 0
    """No later change has a revision that is not greater."""


def step(call: Call, state: State) -> State | None:
    """Return the state after a call, or None if it cannot be answered so in this one."""
    if call.action is Action.SAVE:
        return _save(call, state)
    if call.action is Action.SAVE_IF_NEW:
        return _skip(call, state) if state.digest is not None else _save(call, state)
    if call.action in {Action.DELETE, Action.DELETE_IF_THERE}:
        return _delete(call, state)
    return _observe(call, state)


def dominates(one: State | None, other: State) -> bool:
    """Tell whether all that can follow ``other`` can follow ``one`` as well."""
    if one is None or one.digest != other.digest:
        return False
    if one.revision is not None or other.digest is None:
        return one.revision == other.revision and one.floor <= other.floor
    return one.floor < (other.floor + 1 if other.revision is None else other.revision)


def is_settled(call: Call) -> bool:
    """Tell whether a call that changes nothing now could do nothing else later."""
    return not call.writes or (call.action is Action.SAVE and call.revision is not None)


def _save(call: Call, state: State) -> State | None:
    guarded = _guard(call, state)
    if guarded is None:
        return None
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
    """Return the state with the revision that the guard asks for, if it can have it."""
    if call.guard is None:
        return state
    if call.guard == 0:
        return state if state.digest is None else None
    return None if state.digest is None else _known(state, call.guard)


def _known(state: State, revision: int | None) -> State | None:
    """Return the state of a message of which somebody tells the revision."""
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
