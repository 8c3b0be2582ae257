"""Decides whether calls on one id can have happened one after the other.

The algorithm of Wing and Gong with Lowe's memoisation: take, of the calls that none of
the others precedes, one that the state allows; go on with the rest; step back where none
is left. What makes it quick is said in docs/history-checker.md, and why it is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tools.chaos.register_model import Action, Call, State, dominates, is_settled, step

BUDGET = 100_000
"""Configurations that are looked at before a search is given up; some seconds."""


class Verdict(Enum):
    """What a search came to."""

    YES = "linearizable"
    NO = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Decision:
    """A verdict, and what it took."""

    verdict: Verdict
    configurations: int


class _Configuration(NamedTuple):
    done: int
    """A bit for each call that must happen, in the order of their starts."""
    used: int
    """A bit for each call that may happen."""
    state: State
    before: State | None
    """The state before the last call, where that was one that may happen: the next has to
    need it, or it was in vain."""


def linearize(calls: Sequence[Call], budget: int = BUDGET) -> Decision:
    """Search for an order of ``calls`` on one id that begins with nothing stored."""
    return _Search(calls).run(budget)


class _Search:
    def __init__(self, calls: Sequence[Call]) -> None:
        ordered = sorted(calls, key=lambda call: call.start)
        self._must = [call for call in ordered if call.must]
        self._may = [call for call in ordered if not call.must]
        self._all = (1 << len(self._must)) - 1
        told = [n for n, call in enumerate(self._must) if call.revision is not None]
        self._by_revision = sorted(told, key=lambda n: self._must[n].revision or 0)
        self._classes = self._equivalent()

    def run(self, budget: int) -> Decision:
        stack = [_Configuration(0, 0, State(), None)]
        seen: set[_Configuration] = set()
        while stack:
            now = self._settle(stack.pop())
            if now.done == self._all:
                return Decision(Verdict.YES, len(seen))
            if now in seen:
                continue
            seen.add(now)
            if len(seen) > budget:
                return Decision(Verdict.UNDECIDED, len(seen))
            # The last that is pushed is tried first: what must happen, the earliest end first.
            minimal = self._minimal(now.done)
            latest = min(self._must[n].end for n in minimal)
            stack.extend(self._optional(now, latest))
            stack.extend(self._required(now, minimal))
        return Decision(Verdict.NO, len(seen))

    def _settle(self, now: _Configuration) -> _Configuration:
        """Take at once whatever changes nothing and cannot fit better later."""
        while now.done != self._all:
            done = now.done
            for number in self._minimal(done):
                call = self._must[number]
                if is_settled(call) and step(call, now.state) == now.state:
                    done |= 1 << number
            if done == now.done:
                break
            now = _Configuration(done, now.used, now.state, None)
        return now

    def _minimal(self, done: int) -> list[int]:
        """Return the calls to do of which none ended before another of them began."""
        found: list[int] = []
        earliest = float("inf")
        # The first zero bit is the first call that is not done.
        for number in range((~done & (done + 1)).bit_length() - 1, len(self._must)):
            call = self._must[number]
            if call.start > earliest:
                break
            if not done >> number & 1:
                found.append(number)
                earliest = min(earliest, call.end)
        return [number for number in found if self._must[number].start <= earliest]

    def _required(self, now: _Configuration, minimal: list[int]) -> Iterator[_Configuration]:
        lowest = self._lowest_revision(now.done)
        for number in sorted(minimal, key=lambda n: self._must[n].end, reverse=True):
            call = self._must[number]
            if call.revision is not None and call.revision > lowest:
                continue
            state = step(call, now.state)
            if state is not None and not self._is_redundant(call, now.before, state):
                yield _Configuration(now.done | 1 << number, now.used, state, None)

    def _optional(self, now: _Configuration, latest: float) -> Iterator[_Configuration]:
        tried: set[object] = set()
        for number, call in enumerate(self._may):
            if call.start > latest:
                break
            if now.used >> number & 1 or self._classes[number] in tried:
                continue
            state = step(call, now.state)
            if state is None or state == now.state or self._is_redundant(call, now.before, state):
                continue
            tried.add(self._classes[number])
            yield _Configuration(now.done, now.used | 1 << number, state, now.state)

    @staticmethod
    def _is_redundant(call: Call, before: State | None, after: State) -> bool:
        """Tell whether it leads as far without the optional call just before it."""
        return before is not None and dominates(step(call, before), after)

    def _lowest_revision(self, done: int) -> float:
        """Return the lowest revision told by a call to do: no greater one can be before it."""
        for number in self._by_revision:
            if not done >> number & 1:
                return self._must[number].revision or 0
        return float("inf")

    def _equivalent(self) -> list[object]:
        """Name for each optional call what it can do: of equal ones the first is enough."""
        sets = list({call.among for call in self._must if call.action is Action.OUTSIDE})
        read = {call.digest for call in self._must if call.digest is not None}
        written = [call.digest for call in self._may]
        names: list[object] = []
        for call in self._may:
            digest = call.digest
            if digest not in read and written.count(digest) == 1:
                # Nobody saw the value itself, only that there was one.
                digest = ""
            within = frozenset(n for n, among in enumerate(sets) if call.digest in among)
            names.append((call.action, call.guard, digest, within, call.revision))
        return names
