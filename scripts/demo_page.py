"""What the demonstration shows: on a terminal with colour and what goes on, plain elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.status import Status


class Step(NamedTuple):
    """A line of the story."""

    name: str
    what: str
    began: float
    """By ``time.monotonic``."""
    seconds: float
    """How long the step itself took."""
    pause: float
    """The longest that a writer waited for an answer in it, in seconds."""
    calls: int
    """Calls answered in it, and until the next."""


class Page:
    """Standard output."""

    def __init__(self) -> None:
        """Find out what it can show."""
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            # A file or a pipe: nothing is wrapped.
            self._console = Console(highlight=False, width=200)
        self._status: Status | None = None
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        """Begin."""
        self._console.print(f"[bold]{escape(text)}[/bold]\n")

    def doing(self, text: str) -> None:
        """Tell what goes on, until something else does."""
        if not self._console.is_terminal:
            return
        if self._status is None:
            self._status = self._console.status(escape(text))
            self._status.start()
        else:
            self._status.update(escape(text))

    def say(self, text: str) -> None:
        """Tell something that has happened."""
        self._console.print(f"  {escape(text)}")

    def begin_steps(self) -> None:
        """Print the head of the steps."""
        head = f"  {'step':<18}{'at':>8}{'took':>9}{'longest pause':>16}{'calls':>8}  what"
        self._console.print(f"\n[dim]{head}[/dim]")
        self._began = time.monotonic()

    def step(self, step: Step) -> None:
        """Print a step that is done."""
        self._console.print(
            f"  [bold]{step.name:<18}[/bold]{_time(step.began - self._began):>8}"
            f"{_time(step.seconds):>9}{_time(step.pause):>16}{step.calls:>8,}  " + escape(step.what)
        )

    def ledger(self, entries: Mapping[str, str]) -> None:
        """Print the sums."""
        self._stop()
        wide = max(map(len, entries))
        self._console.print()
        for name, value in entries.items():
            self._console.print(f"  {name:<{wide}}   {escape(value)}")

    def failed(self, text: str) -> None:
        """Print what went wrong."""
        self._stop()
        self._console.print(f"\n[bold red]error:[/bold red] {escape(text)}")

    def verdict(self, whole: bool, text: str) -> None:
        """End."""
        self._stop()
        said = "[bold green]Nothing was lost.[/]" if whole else "[bold red]Not as it should be.[/]"
        self._console.print(f"\n{said} {escape(text)}")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
