"""Where people read: wrapped and in colour on a terminal, plain and whole elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sagastore.cli.safe import label, printable

__all__ = ["Screen", "screen"]

# Wider than anything: what goes into a file or a pipe is not cut and not wrapped.
_UNLIMITED = 1 << 24


class _QuietConsole(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the process; `execute` does, with the right status.
        raise BrokenPipeError


class Screen:
    """Standard output, or standard error, for people."""

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A terminal that cannot show a character must not end the command.
            reconfigure(errors="backslashreplace")
        self.console = _QuietConsole(
            stderr=stderr,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if stream.isatty() else _UNLIMITED,
        )

    @property
    def is_terminal(self) -> bool:
        """True where a person sees the text at once, in a window of some width."""
        return self.console.is_terminal

    def line(self, *parts: str | tuple[str, str] | Text, indent: int = 0) -> None:
        """Print one paragraph: texts, or pairs of a text and a style.

        Wrapped between words on a terminal, with every line indented.
        """
        text = Text()
        for part in parts:
            if isinstance(part, str):
                text.append(printable(part))
            elif isinstance(part, Text):
                text.append_text(part)
            else:
                text.append(printable(part[0]), part[1])
        for row in self._wrapped(text, indent):
            self.console.print(row, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table: boxed on a terminal, its last column wrapped; lines elsewhere."""
        if not self.is_terminal:
            self.line(f"{title}:")
            for row in rows:
                self.line("  ".join(map(label, row)), indent=2)
            return
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(label(cell)) for cell in row))
        self.console.print(table)

    def _wrapped(self, text: Text, indent: int) -> Iterator[Text]:
        margin = " " * indent
        if not self.is_terminal:
            for row in text.split("\n", allow_blank=True):
                yield Text(margin if row else "").append_text(row)
            return
        width = max(self.console.width - indent, 10)
        for row in text.wrap(self.console, width, tab_size=8):
            row.rstrip()
            yield Text(margin if row else "").append_text(row)


def screen(*, stderr: bool = False) -> Screen:
    """Return standard output for people."""
    return Screen(stderr=stderr)
