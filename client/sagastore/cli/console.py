"""Where people read: wrapped and in colour on a terminal, plain and whole elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sagastore.cli.sanitize import label, printable, unbroken

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Part", "Row", "Screen", "layout", "screen", "terminal_console"]

Part = str | tuple[str, str]
"""A text, or a text and its style."""


class Row(NamedTuple):
    """A line of a page: a label, and a text that hangs behind it where it is wrapped."""

    label: str
    parts: tuple[Part, ...]
    hang: int = 0
    """Columns before the text: at least those of the label."""


class Screen(Protocol):
    """Standard output, for people. Makes all text harmless itself."""

    is_terminal: bool

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print one paragraph, every line of it indented."""

    def page(self, rows: Iterable[Row]) -> None:
        """Print rows, each of them one line where nothing has to be wrapped."""

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table."""


def screen() -> Screen:
    """Return standard output: a terminal, or anything else."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A character that cannot be shown must not end the command.
        reconfigure(errors="backslashreplace")
    if sys.stdout.isatty() or os.environ.get("FORCE_COLOR"):
        return _Terminal()
    return _Plain()


class _Plain:
    """A file or a pipe: nothing is cut, nothing wrapped, nothing coloured."""

    is_terminal = False

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print one paragraph, every line of it indented."""
        text = "".join(part if isinstance(part, str) else part[0] for part in parts)
        margin = " " * indent
        for row in printable(text).split("\n"):
            sys.stdout.write(f"{margin if row else ''}{row}\n")

    def page(self, rows: Iterable[Row]) -> None:
        """Print each row as a line."""
        for row in rows:
            text = "".join(part if isinstance(part, str) else part[0] for part in row.parts)
            line = f"{label(row.label):<{row.hang}}{unbroken(text)}"
            sys.stdout.write(f"{line.rstrip()}\n")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print the rows of a table as lines."""
        del columns
        self.line(f"{title}:")
        for row in rows:
            self.line("  ".join(map(label, row)), indent=2)


class _Terminal:
    """A terminal: wrapped between words; colours as it and NO_COLOR allow."""

    is_terminal = True

    def __init__(self) -> None:
        self._console = terminal_console()

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print one paragraph, wrapped between words, every line of it indented."""
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
        """Print rows, wrapped between words behind their labels."""
        self._console.print(layout(self._console, rows), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table, its cells folded to the width of the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(label(cell)) for cell in row))
        self._console.print(table)


def terminal_console() -> Console:
    """Return rich's console on standard output, which takes all text as it is."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            # rich would end the process; `execute` does, with the right status.
            raise BrokenPipeError

    return QuietConsole(highlight=False, markup=False, emoji=False)


def layout(console: Console, rows: Iterable[Row]) -> Text:
    """Return a page as lines that fit the console."""
    from rich.text import Text

    lines: list[Text] = []
    for row in rows:
        text = Text()
        for part in row.parts:
            words, style = (part, "") if isinstance(part, str) else part
            text.append(unbroken(words), style)
        wrapped = text.wrap(console, max(console.width - row.hang, 10)) or [Text()]
        for number, line in enumerate(wrapped):
            line.rstrip()
            margin = label(row.label) if number == 0 else ""
            lines.append(Text.assemble((f"{margin:<{row.hang}}", "dim"), line))
    return Text("\n").join(lines)
