"""Human-readable output: wrapped and coloured on a terminal, plain text elsewhere."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sagastore.commandline.sanitize import label, printable, unbroken
from sagastore.commandline.text import command_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Part", "Row", "Screen", "layout", "screen", "terminal_console"]

Part = str | tuple[str, str]
"""A text, or a text and its style."""


class Row(NamedTuple):
    """A line of a page: a label and a text with a hanging indent."""

    label: str
    parts: tuple[Part, ...]
    hang: int = 0
    """Width of the label column."""
    command: tuple[str, ...] = ()
    """A command to show instead of the text, such that it can be pasted into a shell."""


class Screen(Protocol):
    """Human-readable standard output; sanitizes all text."""

    is_terminal: bool

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print one paragraph with all lines indented."""

    def page(self, rows: Iterable[Row]) -> None:
        """Print rows."""

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table."""


def screen() -> Screen:
    """Return the screen for standard output, which may be a terminal."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # An unencodable character must not end the command.
        reconfigure(errors="backslashreplace")
    if sys.stdout.isatty() or os.environ.get("FORCE_COLOR"):
        return _Terminal()
    return _Plain()


class _Plain:
    """A file or a pipe: no truncation, wrapping or colours."""

    is_terminal = False

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print one paragraph with all lines indented."""
        text = "".join(part if isinstance(part, str) else part[0] for part in parts)
        margin = " " * indent
        for row in printable(text).split("\n"):
            sys.stdout.write(f"{margin if row else ''}{row}\n")

    def page(self, rows: Iterable[Row]) -> None:
        """Print each row as a line."""
        for row in rows:
            text = "".join(part if isinstance(part, str) else part[0] for part in row.parts)
            text = shlex.join(row.command) or text
            line = f"{label(row.label):<{row.hang}}{unbroken(text)}"
            sys.stdout.write(f"{line.rstrip()}\n")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print the rows of a table as lines."""
        del columns
        self.line(f"{title}:")
        for row in rows:
            self.line("  ".join(map(label, row)), indent=2)


class _Terminal:
    """A terminal: wraps between words; uses colours unless NO_COLOR is set."""

    is_terminal = True

    def __init__(self) -> None:
        self._console = terminal_console()

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print one paragraph, wrapped between words, with all lines indented."""
        from rich.text import Text

        text = Text()
        for part in parts:
            words, style = (part, "") if isinstance(part, str) else part
            text.append(printable(words), style)
        for row in self._wrapped(text, indent):
            self._console.print(row, soft_wrap=True)

    def _wrapped(self, text: Text, indent: int) -> Iterator[Text]:
        width = max(self._console.width - indent, 10)
        for row in text.wrap(self._console, width, tab_size=8):
            row.rstrip()
            if row:
                row.pad_left(indent)
            yield row

    def page(self, rows: Iterable[Row]) -> None:
        """Print rows, wrapped between words after their labels."""
        self._console.print(layout(self._console, rows), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table whose cells are folded to the width of the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(label(cell)) for cell in row))
        self._console.print(table)


def terminal_console() -> Console:
    """Return a rich console on standard output that does not interpret text."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            # rich would end the process; `execute` ends it with the correct status.
            raise BrokenPipeError

    return QuietConsole(highlight=False, markup=False, emoji=False)


def layout(console: Console, rows: Iterable[Row]) -> Text:
    """Return a page as lines that fit into the console."""
    from rich.text import Text

    lines: list[Text] = []
    for row in rows:
        for number, line in enumerate(_wrapped(console, row) or [Text()]):
            line.rstrip()
            margin = label(row.label) if number == 0 else ""
            lines.append(Text.assemble((f"{margin:<{row.hang}}", "dim"), line))
    return Text("\n").join(lines)


def _wrapped(console: Console, row: Row) -> list[Text]:
    from rich.text import Text

    width = max(console.width - row.hang, 10)
    if row.command:
        return [Text(unbroken(line), "bold") for line in command_lines(row.command, width)]
    text = Text()
    for part in row.parts:
        words, style = (part, "") if isinstance(part, str) else part
        text.append(unbroken(words), style)
    return list(text.wrap(console, width))
