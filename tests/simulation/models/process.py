"""Simulated processes: the unit that a crash ends and that a scheduler can freeze."""

from __future__ import annotations

import contextvars


class ProcessDeadError(BaseException):
    """A crashed process used a store.

    Derives from BaseException so that no handler of the code under test can turn it into an answer.
    """


class Process:
    """Process of the simulation.

    Tasks and callbacks belong to the process in ``PROCESS`` of their context, which tasks inherit.
    The simulation's event loop drops callbacks of a dead process without running any ``finally``,
    and postpones those of a frozen process.
    """

    def __init__(self, name: str) -> None:
        """Create a live process; ``name`` appears in traces."""
        self.name = name
        self.dead = False
        """Set permanently by a crash. A restarted server is a new process."""
        self.frozen_until = 0.0
        """Event loop time in seconds before which no callback runs (SIGSTOP)."""
        self.clock_offset = 0.0
        """Seconds that the wall clock of this process is ahead of the true time."""
        self._context = contextvars.copy_context()
        self._context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        """Return the name."""
        return f"Process({self.name!r})"

    @property
    def context(self) -> contextvars.Context:
        """New context for a task or a callback of this process."""
        return self._context.copy()

    def check_alive(self) -> None:
        """Raise ProcessDeadError after a crash."""
        if self.dead:
            raise ProcessDeadError(self.name)


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
"""Process of the running callback; None: the simulation itself."""
