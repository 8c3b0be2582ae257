"""Log handler of a round: a record with a traceback is a violation, any other an event."""

from __future__ import annotations

import logging
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from tests.simulation.models.process import PROCESS

if TYPE_CHECKING:
    from tests.simulation.world import World

_NAME = "sagastore_server"


class Log(logging.Handler):
    """Captures the server's log records of a round for the duration of the context."""

    def __init__(self, world: World) -> None:
        """Capture records for ``world``."""
        super().__init__(logging.INFO)
        self._world = world
        self._before: tuple[int, bool] = (logging.NOTSET, True)
        self.over = False
        """Whether the round is being cleaned up, so that records are ignored."""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record."""
        world = self._world
        if self.over:
            return
        world.counts[f"logged {record.msg}"] += 1
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception(record.exc_info[1])
            world.violation(f"an internal error: {record.getMessage()}: {''.join(lines)[-2000:]}")
        process = PROCESS.get()
        name = process.name if process else "none"
        world.note(name, "log", level=record.levelname, line=record.getMessage())

    def __enter__(self) -> Log:
        """Replace the other handlers."""
        logger = logging.getLogger(_NAME)
        self._before = (logger.level, logger.propagate)
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Restore the handlers."""
        logger = logging.getLogger(_NAME)
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before
