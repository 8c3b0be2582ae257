"""Compares two implementations of one contract, call by call."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable
from typing import Any

from hypothesis import Phase as ExamplePhase

from sagastore_server.storage.errors import PreconditionError, StorageError
from tests.support.migration_backends import now

PHASES_OF_SEEDS = (ExamplePhase.explicit, ExamplePhase.reuse, ExamplePhase.generate)
"""Phases of Hypothesis for a test that gets a seed: a smaller seed is no simpler script."""

_SAID = ("message_id", "revision", "expected", "stored")
"""Attributes that errors of the contract have in common."""


async def answer_of(call: Awaitable[object]) -> object:
    """Return what a call returns, or what the error that it raises tells a program."""
    try:
        return await call
    except StorageError as exc:
        return told_by(exc)


def told_by(error: StorageError) -> tuple[object, ...]:
    """Return the kind of an error and what it tells besides its line for people."""
    reasons = [one.reason for one in error.blockers] if isinstance(error, PreconditionError) else []
    return (type(error).__name__, *reasons, *(getattr(error, name, None) for name in _SAID))


class Steps:
    """Replaces times by the number of the step in which they were taken.

    Both implementations read the wall clock within the same step, at different instants.
    """

    def __init__(self) -> None:
        """Begin with no step."""
        self._began: list[int] = []

    def begin(self) -> None:
        """Begin the next step, later than everything of the one before."""
        last = now()
        while now() <= last:
            pass
        self._began.append(now())

    def normal(self, value: Any) -> Any:
        """Return ``value`` with the times in it replaced."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= self._began[0]:
            return f"step {bisect_right(self._began, value)}"
        if isinstance(value, dict):
            return {key: self.normal(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.normal(one) for one in value]
        return value
