"""Progress of a transfer: a bar on a terminal, periodic lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from sagastore.commandline.errors import json_errors
from sagastore.commandline.text import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Meter", "duration", "rate_of"]

_EVERY_SECONDS = 5.0
_WINDOW_SECONDS = 10.0
_WIDE = 70


class Meter:
    """Displays rows, rate and time left on standard error.

    Args:
        verb: The operation, for example `importing`.
        total: Total units; None if unknown.
        done: Units already done at the start.
        rows: Rows already done at the start.
        quiet: Show nothing.
        unit: Name of a row, and a short form for rates.
    """

    def __init__(
        self,
        verb: str,
        *,
        total: int | None,
        done: int = 0,
        rows: int = 0,
        quiet: bool = False,
        unit: tuple[str, str] = ("message", "msg"),
    ) -> None:
        self._verb = verb
        self._unit, self._short_unit = unit
        self._total = total
        self._begun = self._last_line = time.monotonic()
        self._samples = deque([(self._begun, done, rows)])
        self._bar: _Bar | None = None
        # Standard error has only JSON objects with --json.
        self._silent = quiet or json_errors.get()
        if not quiet and sys.stderr.isatty():
            self._bar = _Bar(verb, total, done)

    def update(self, done: int, rows: int) -> None:
        """Update the progress."""
        now = time.monotonic()
        self._samples.append((now, done, rows))
        while now - self._samples[0][0] > _WINDOW_SECONDS and len(self._samples) > 2:
            self._samples.popleft()
        if self._bar is not None:
            self._bar.update(done, self._describe(rows, done))
        elif not self._silent and now - self._last_line >= _EVERY_SECONDS:
            self._last_line = now
            percent = f"{done / self._total:.0%}, " if self._total else ""
            sys.stderr.write(f"{self._verb}: {percent}{self._describe(rows, done)}\n")
            sys.stderr.flush()

    def _describe(self, rows: int, done: int) -> str:
        (then, done_then, rows_then), (now, _, _) = self._samples[0], self._samples[-1]
        elapsed = now - then
        if elapsed <= 0:
            return counted(rows, self._unit)
        text = (
            f"{counted(rows, self._unit)}, {rate_of(rows - rows_then, elapsed, self._short_unit)}"
        )
        speed = (done - done_then) / elapsed
        if self._total and speed > 0:
            text += f", {duration(max(0, self._total - done) / speed)} left"
        return text

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class _Bar:
    """A rich progress bar followed by a status text."""

    def __init__(self, verb: str, total: int | None, done: int) -> None:
        # Slow to import, and needed only on a terminal.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
        )
        from rich.table import Column

        from sagastore.commandline.sanitize import one_line

        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        columns: list[ProgressColumn] = [SpinnerColumn()]
        if console.width >= _WIDE:
            columns.append(TextColumn(one_line(verb), markup=False))
            columns.append(BarColumn(None, table_column=Column(ratio=1, min_width=5)))
        if total:
            columns.append(TaskProgressColumn())
        columns.append(TextColumn("{task.fields[status]}", markup=False))
        self._progress: Progress = Progress(
            *columns, console=console, transient=True, expand=console.width >= _WIDE
        )
        self._task: TaskID = self._progress.add_task("", total=total, completed=done, status="")
        self._progress.start()

    def update(self, done: int, status: str) -> None:
        """Update the bar."""
        self._progress.update(self._task, completed=done, status=status)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


def rate_of(rows: float, seconds: float, unit: str = "msg") -> str:
    """Return a rate for display."""
    rate = rows / seconds if seconds > 0 else 0.0
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:,.1f} {unit}/s"


def duration(seconds: float) -> str:
    """Return a duration for display: `0.4 s`, `42 s`, `3:05 min`, `2:07:30 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"
