"""Simulated processes: the unit that a crash ends and that a scheduler can freeze."""

from __future__ import annotations

import contextvars


class ProcessDeadError(BaseException):
    """A crashed process used a store.

    Not an Exception, so that no handler of the code under test can turn it into an answer.
    """


class Process:
    """A process of the simulation.

    Tasks and callbacks belong to it if ``PROCESS`` is this process in their context; what they
    start inherits that. The event loop of the simulation drops callbacks of a dead process,
    without running any ``finally``, and postpones those of a frozen one.
    """

    def __init__(self, name: str) -> None:
        """Make a process that is alive; ``name`` is for traces."""
        self.name = name
        self.dead = False
        """Set by a crash, for good. A restarted server is a new process."""
        self.frozen_until = 0.0
        """Time of the event loop, in seconds, before which no callback runs (SIGSTOP)."""
        self.clock_offset = 0.0
        """Seconds that the wall clock of this process is ahead of the true time."""
        self._context = contextvars.copy_context()
        self._context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        """Return the name."""
        return f"Process({self.name!r})"

    @property
    def context(self) -> contextvars.Context:
        """A new context for a task or a callback of this process."""
        return self._context.copy()

    def check_alive(self) -> None:
        """Raise ProcessDeadError after a crash."""
        if self.dead:
            raise ProcessDeadError(self.name)


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
"""The process that the running callback belongs to; None: the simulation itself."""
