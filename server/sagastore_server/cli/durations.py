"""Durations on the command line: ``90s``, ``30m``, ``1h30m``, ``2d``."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")

SHORTEST, LONGEST = 1.0, 366.0 * 86_400
"""Seconds."""


def parse_duration(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: It is no duration, or not from 1 s to 366 d. The text is one line.

    """
    compact = text.strip().lower()
    if _NUMBER.fullmatch(compact):
        raise ValueError(f"{text!r} has no unit; write {compact}s, {compact}m, {compact}h, …")
    if not _WHOLE.fullmatch(compact):
        raise ValueError(
            f"{text!r} is not a duration; write a number and s, m, h, d or w, for example 30m, 1h "
            "or 1h30m"
        )
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(compact))
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError(f"{text!r} is not from 1s to 366d")
    return seconds
