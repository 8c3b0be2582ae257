"""JSON on standard output."""

from __future__ import annotations

import sys

__all__ = ["print_json"]


def print_json(line: str) -> None:
    """Print a line of JSON, always in UTF-8, regardless of the locale."""
    sys.stdout.buffer.write(line.encode() + b"\n")
