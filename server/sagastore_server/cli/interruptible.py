"""Long work with a progress bar that a signal stops at a safe place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, int], None]
_T = TypeVar("_T")


def with_progress(work: Callable[[Report], _T], signalled: threading.Event | None = None) -> _T:
    """Run ``work`` with a progress bar on a terminal, and return its result.

    SIGINT and SIGTERM set ``signalled``, and stop the work at its next report of progress. One that
    arrives after the last report stops nothing.

    Raises:
        KeyboardInterrupt: A signal stopped the work.

    """
    # On standard error, so that standard output has the result only.
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
    arrived = signalled or threading.Event()
    with _deferred_signals(arrived), bar:
        task = bar.add_task("Reading", total=None)

        def report(what: str, at: int, of: int) -> None:
            if arrived.is_set():
                raise KeyboardInterrupt
            bar.update(task, description=what.capitalize(), completed=at, total=of or None)

        return work(report)


@contextlib.contextmanager
def _deferred_signals(signalled: threading.Event) -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the next report of progress, which is a safe place.

    An exception at any other place could come between the creation of a file and the code that
    removes it. A second signal raises at once, because the work may hang on a disk.
    """

    def on_signal(number: int, frame: object) -> None:
        del number, frame
        if signalled.is_set():
            raise KeyboardInterrupt
        signalled.set()

    with handled_by(on_signal):
        yield


@contextlib.contextmanager
def handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by ``handler`` while the context lasts."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
