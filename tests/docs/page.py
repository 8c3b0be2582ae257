"""Commands of a documentation page: its marked fenced blocks, with the output that it shows.

A mark is an HTML comment on the line before the fence, which Markdown does not show:

* ``<!-- run -->``: run the commands, in order, in one shell. A line that begins with ``$`` is a
  command, the lines after it are its output. Without ``$``, every line is a command.
* ``<!-- run: in NAME -->``: run them in another terminal, which has its own environment.
* ``<!-- run: until TEXT -->``: start the one command in the background, and wait until its output
  has TEXT.
* ``<!-- run: file NAME -->``: write the block to a file.
* ``<!-- run: wait TEXT -->``, without a fence: wait until the newest background
  command prints TEXT.
* ``<!-- run: stop -->``, without a fence: stop the newest background command, as Ctrl+C does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MARK = re.compile(
    r"^<!-- run(?:: (?P<how>in|until|file|wait|stop)(?: (?P<what>[^>]+?))?)? -->\n"
    r"(?:```\w*\n(?P<text>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_ANY_MARK = re.compile(r"^<!-- run", re.MULTILINE)


class Step(NamedTuple):
    """One thing to do."""

    kind: str
    """``run``, ``until``, ``file``, ``wait`` or ``stop``."""
    command: str
    """The command; the name of a file; empty for ``wait`` and ``stop``."""
    shown: str
    """Output as the page shows it, content of a file, or the text to wait for."""
    expected: str = ""
    """For ``until``: output as the page shows it."""
    terminal: str = ""
    """Name of the terminal; empty: the first one."""


def steps(page: Path) -> list[Step]:
    """Return the steps of a page.

    Raises:
        ValueError: A mark has no block, or is not known.

    """
    text = page.read_text(encoding="utf-8")
    marks = list(_MARK.finditer(text))
    if len(marks) != len(_ANY_MARK.findall(text)):
        raise ValueError(f"{page.name}: a mark is not known")
    return [step for mark in marks for step in _steps_of(mark, page)]


def _steps_of(mark: re.Match[str], page: Path) -> Iterator[Step]:
    how, what, text = mark["how"], mark["what"] or "", mark["text"]
    if (text is None) != (how in {"wait", "stop"}):
        raise ValueError(f"{page.name}: {mark[0].splitlines()[0]}: a block is missing or too many")
    if how in {"wait", "stop"}:
        yield Step(how, "", what)
    elif how == "file":
        yield Step("file", what, text)
    elif how == "until":
        ((command, expected),) = commands(text)
        yield Step("until", command, what, expected)
    else:
        for command, shown in commands(text):
            yield Step("run", command, shown, terminal=what)


def commands(block: str) -> list[tuple[str, str]]:
    """Return the commands of a block, each with the output that follows it."""
    lines = block.splitlines()
    has_prompts = any(line.startswith("$ ") for line in lines)
    found: list[tuple[list[str], list[str]]] = []
    continued = False
    for line in lines:
        if continued:
            found[-1][0].append(line)
        elif line.startswith("$ ") or (not has_prompts and line.strip()):
            found.append(([line.removeprefix("$ ")], []))
        elif found:
            found[-1][1].append(line)
        continued = bool(found) and found[-1][0][-1].endswith("\\") and not found[-1][1]
    return [("\n".join(command), "\n".join(output).strip("\n")) for command, output in found]


# ------------------------------------------------------------------ comparison

_VARIABLE = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)?", "<time>"),
    (r"\b[0-9a-f]{8}-\d{8}T\d{6}Z", "<id>-<time>"),
    (r"\b\d\d:\d\d:\d\d\b", "<time>"),
    (r"\b[0-9a-f]{64}\b", "<digest>"),
    (r"\b[0-9a-f]{12}\b|\b[0-9a-f]{16}\b", "<hex>"),
    (r"\bprocess \d+ on \S+,", "<process>"),
    (r"\b\d[\d,.]* (?:ms|s|msg/s|MB|kB|GB|rows/s)\b", "<measured>"),
    (r"\bschema \d+\b", "schema <version>"),
    (r"\b(?:took|at) \d[\d,.]*", "<measured>"),
    (r"(?<![\w.])\d+\.\d+(?:e[+-]?\d+)?(?![\w.])", "<number>"),
)
"""What differs between two runs, and the name that stands for it."""


def matches(shown: str, output: str) -> bool:
    """Return whether an output is the one that a page shows.

    Ids, times and measured values may differ, and the number of spaces. A line ``...`` stands for
    any lines, ``…`` for any part of a line.
    """
    wanted = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace("…", ".*") + r"\n"
        for line in masked(shown).splitlines()
    )
    return re.fullmatch(wanted, masked(output) + "\n") is not None


def masked(text: str) -> str:
    """Return a text with names in place of what differs between two runs."""
    for pattern, name in _VARIABLE:
        text = re.sub(pattern, name, text)
    return "\n".join(" ".join(line.split()) for line in text.strip("\n").splitlines())
