"""Output of the demonstration: colour and a status line on a terminal, plain text elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.status import Status


class Step(NamedTuple):
    """Row of the step table."""

    name: str
    what: str
    began: float
    """Start, by ``time.monotonic``."""
    seconds: float
    """Duration of the step in seconds."""
    pause: float
    """Longest time that a writer waited for an answer during the step, in seconds."""
    calls: int
    """Calls answered from the start of the step to the next one."""


class Page:
    """Prints the demonstration to standard output."""

    def __init__(self) -> None:
        """Detect the capabilities of standard output."""
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            # A file or a pipe: lines are not wrapped.
            self._console = Console(highlight=False, width=200)
        self._status: Status | None = None
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        """Print the title."""
        self._console.print(f"[bold]{escape(text)}[/bold]\n")

    def doing(self, text: str) -> None:
        """Show the current activity until the next output."""
        if not self._console.is_terminal:
            return
        if self._status is None:
            self._status = self._console.status(escape(text))
            self._status.start()
        else:
            self._status.update(escape(text))

    def say(self, text: str) -> None:
        """Print a completed activity."""
        self._console.print(f"  {escape(text)}")

    def begin_steps(self) -> None:
        """Print the header of the step table."""
        head = f"  {'step':<18}{'at':>8}{'took':>9}{'longest pause':>16}{'calls':>8}  what"
        self._console.print(f"\n[dim]{head}[/dim]")
        self._began = time.monotonic()

    def step(self, step: Step) -> None:
        """Print a completed step."""
        self._console.print(
            f"  [bold]{step.name:<18}[/bold]{_time(step.began - self._began):>8}"
            f"{_time(step.seconds):>9}{_time(step.pause):>16}{step.calls:>8,}  " + escape(step.what)
        )

    def ledger(self, entries: Mapping[str, str]) -> None:
        """Print the totals."""
        self._stop()
        wide = max(map(len, entries))
        self._console.print()
        for name, value in entries.items():
            self._console.print(f"  {name:<{wide}}   {escape(value)}")

    def failed(self, text: str) -> None:
        """Print an error."""
        self._stop()
        self._console.print(f"\n[bold red]error:[/bold red] {escape(text)}")

    def verdict(self, whole: bool, text: str) -> None:
        """Print the result."""
        self._stop()
        said = "[bold green]No data was lost.[/]" if whole else "[bold red]The check failed.[/]"
        self._console.print(f"\n{said} {escape(text)}")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
