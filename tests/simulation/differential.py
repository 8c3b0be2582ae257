"""Differential test of two implementations of one contract, call by call."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable
from typing import Any

from hypothesis import Phase as ExamplePhase

from sagastore_server.storage.errors import PreconditionError, StorageError
from tests.support.migration_backends import now

PHASES_OF_SEEDS = (ExamplePhase.explicit, ExamplePhase.reuse, ExamplePhase.generate)
"""Hypothesis phases for tests of a seed: a smaller seed does not mean a simpler script."""

_SAID = ("message_id", "revision", "expected", "stored")
"""Attributes that the errors of the contract share."""


async def answer_of(call: Awaitable[object]) -> object:
    """Return the result of a call, or the machine-readable part of its error."""
    try:
        return await call
    except StorageError as exc:
        return error_facts(exc)


def error_facts(error: StorageError) -> tuple[object, ...]:
    """Return the kind and the attributes of an error, without its message."""
    reasons = [one.reason for one in error.blockers] if isinstance(error, PreconditionError) else []
    return (type(error).__name__, *reasons, *(getattr(error, name, None) for name in _SAID))


class Steps:
    """Replaces times by the number of the step in which they were taken.

    Both implementations read the wall clock within the same step, but at different moments.
    """

    def __init__(self) -> None:
        """Start without a step."""
        self._began: list[int] = []

    def begin(self) -> None:
        """Begin the next step, later than all times of the previous one."""
        last = now()
        while now() <= last:
            pass
        self._began.append(now())

    def normal(self, value: Any) -> Any:
        """Return ``value`` with its times replaced."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= self._began[0]:
            return f"step {bisect_right(self._began, value)}"
        if isinstance(value, dict):
            return {key: self.normal(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.normal(one) for one in value]
        return value
