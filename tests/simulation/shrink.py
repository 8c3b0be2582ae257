"""Shrinks a failing round by leaving out turns while it still fails in the same way.

Every actor has its own random generator, so leaving out one action changes no other draw. The
method is delta debugging: parts of the turns are left out, then smaller parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.simulation.world import Turn, World

MOST_RUNS = 400
"""Maximum number of runs for shrinking; about half a minute."""

Run = Callable[[frozenset[Turn]], World]
"""Runs the round without some actions."""


def shrink(run: Run, failed: World) -> frozenset[Turn]:
    """Return the turns that can be left out so that the round still ends in the same violation."""
    return _Shrinking(run, failed).shrink()


def kind_of(violation: str) -> str:
    """Return the kind of a violation, without times, ids and values."""
    text = re.sub(r"^at [\d.]+ s: ", "", violation)
    return re.sub(r"[\d'\"=][^\s]*", "", text)[:40]


class _Shrinking:
    def __init__(self, run: Run, failed: World) -> None:
        self._run = run
        self._kind = kind_of(failed.violations[0])
        self._runs = 0
        self._turns = sorted(failed.turns)

    def shrink(self) -> frozenset[Turn]:
        """Halve the remaining turns repeatedly."""
        left_out: frozenset[Turn] = frozenset()
        parts = 2
        kept = list(self._turns)
        while kept and parts <= 2 * len(kept) and self._runs < MOST_RUNS:
            size = max(1, len(kept) // parts)
            for start in range(0, len(kept), size):
                candidate = left_out | set(kept[start : start + size])
                if self._fails(candidate):
                    left_out = candidate
                    kept = [turn for turn in kept if turn not in candidate]
                    parts = max(2, parts - 1)
                    break
            else:
                if size == 1:
                    break
                parts *= 2
        return left_out

    def _fails(self, skips: frozenset[Turn]) -> bool:
        self._runs += 1
        if self._runs > MOST_RUNS:
            return False
        world = self._run(skips)
        return any(kind_of(line) == self._kind for line in world.violations)
