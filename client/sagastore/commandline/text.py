"""Text for people: plural forms, and wrapping at the width of a terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TextIO

__all__ = ["command_lines", "counted", "prepare_streams", "write_command", "write_paragraph"]

_NARROWEST = 20
"""Columns; a narrower terminal is treated as one of this width."""
_MARGIN = 4


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: `1 row`, `2 rows`, `1,000 rows`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def prepare_streams(*streams: TextIO) -> None:
    """Print characters that the encoding of the locale lacks as escapes, instead of failing."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def write_paragraph(stream: TextIO, text: str) -> None:
    """Write a paragraph, wrapped between words on a terminal and in one line elsewhere.

    Words that are longer than a line are broken, and wide characters count as two columns.
    """
    width = _width(stream)
    if width is None:
        stream.write(f"{text}\n")
        return
    # Slow to import, and needed only on a terminal.
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, width=width)
    stream.writelines(f"{line.plain.rstrip()}\n" for line in Text(text).wrap(console, width))


def write_command(stream: TextIO, command: Sequence[str]) -> None:
    """Write a command that can be pasted into a shell, on a terminal in several lines if long."""
    stream.writelines(f"{line}\n" for line in command_lines(command, _width(stream)))


def command_lines(command: Sequence[str], width: int | None) -> Iterator[str]:
    r"""Yield the lines of a command, quoted for a shell; all but the last end in ``\``.

    Breaks only between arguments; an argument that is longer than a line stays whole.

    Args:
        command: The program and its arguments.
        width: Columns of the terminal; None: one line.
    """
    line = ""
    for word in map(shlex.quote, command):
        # Room for the space before the word, and for the ` \` after it.
        if width is not None and line.strip() and _cells(f"{line} {word}") + 2 > width:
            yield f"{line} \\"
            line = " " * _MARGIN + word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _width(stream: TextIO) -> int | None:
    """Return the columns of a terminal; None if the stream is not one."""
    try:
        if not stream.isatty():
            return None
        columns = os.environ.get("COLUMNS", "")
        found = int(columns) if columns.isdecimal() else os.get_terminal_size(stream.fileno())[0]
    except (OSError, ValueError):  # The stream is closed, or has no size.
        return None
    return max(found, _NARROWEST)
