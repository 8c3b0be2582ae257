"""JSON on standard output."""

from __future__ import annotations

import sys

__all__ = ["print_json"]


def print_json(line: str) -> None:
    """Print a line of JSON: always UTF-8, whatever the terminal is set to."""
    sys.stdout.buffer.write(line.encode() + b"\n")
