"""What the code under simulation logs: a defect if it comes with a traceback, else an event."""

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
    """Takes the server's log records of a round while it is entered."""

    def __init__(self, world: World) -> None:
        """Prepare to take them for ``world``."""
        super().__init__(logging.INFO)
        self._world = world
        self._before: tuple[int, bool] = (logging.NOTSET, True)
        self.over = False
        """Whether what is logged says nothing any more: the round is being cleared away."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        world = self._world
        if self.over:
            return
        world.counts[f"logged {record.msg}"] += 1
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception(record.exc_info[1])
            world.violation(f"an internal error: {record.getMessage()}: {''.join(lines)[-2000:]}")
        process = PROCESS.get()
        name = process.name if process else "nobody"
        world.note(name, "log", level=record.levelname, line=record.getMessage())

    def __enter__(self) -> Log:
        """Take what is logged from now on, alone."""
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
        """Leave the log as it was."""
        logger = logging.getLogger(_NAME)
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before
