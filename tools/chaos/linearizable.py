"""Linearizability checker for the calls on one id.

The algorithm is that of Wing and Gong with Lowe's memoization: among the calls that no other call
precedes, take one that the state allows; continue with the rest; backtrack where none is left. The
optimizations and their correctness are described in docs/explanation/history-checker.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tools.chaos.register_model import Action, Call, State, dominates, is_settled, step

BUDGET = 100_000
"""Maximum number of configurations to explore; takes some seconds."""


class Verdict(Enum):
    """Result of a search."""

    YES = "linearizable"
    NO = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Decision:
    """Verdict, and the number of configurations explored."""

    verdict: Verdict
    configurations: int


class _Configuration(NamedTuple):
    done: int
    """One bit per required call, in the order of their starts."""
    used: int
    """One bit per optional call."""
    state: State
    before: State | None
    """State before the last call if that was optional; the next call must depend on it, otherwise
    the optional call is redundant.
    """


def linearize(calls: Sequence[Call], budget: int = BUDGET) -> Decision:
    """Search for an order of ``calls`` on one id that starts with nothing stored."""
    return _Search(calls).run(budget)


class _Search:
    def __init__(self, calls: Sequence[Call]) -> None:
        ordered = sorted(calls, key=lambda call: call.start)
        self._must = [call for call in ordered if call.must]
        self._may = [call for call in ordered if not call.must]
        self._all = (1 << len(self._must)) - 1
        with_revision = [n for n, call in enumerate(self._must) if call.revision is not None]
        self._by_revision = sorted(with_revision, key=lambda n: self._must[n].revision or 0)
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
            # The last one pushed is tried first: required calls, the earliest end first.
            minimal = self._minimal(now.done)
            latest = min(self._must[n].end for n in minimal)
            stack.extend(self._optional(now, latest))
            stack.extend(self._required(now, minimal))
        return Decision(Verdict.NO, len(seen))

    def _settle(self, now: _Configuration) -> _Configuration:
        """Take all calls that change nothing and cannot fit better later."""
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
        """Return the pending calls that did not begin after the end of another pending call."""
        found: list[int] = []
        earliest = float("inf")
        # The first zero bit is the first pending call.
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
        """Return whether the call leads to the same state without the optional call before it."""
        return before is not None and dominates(step(call, before), after)

    def _lowest_revision(self, done: int) -> float:
        """Return the lowest revision answered by a pending call; no higher one can precede it."""
        for number in self._by_revision:
            if not done >> number & 1:
                return self._must[number].revision or 0
        return float("inf")

    def _equivalent(self) -> list[object]:
        """Return the effect of each optional call; among equal ones, the first is enough."""
        sets = list({call.among for call in self._must if call.action is Action.OUTSIDE})
        read = {call.digest for call in self._must if call.digest is not None}
        written = [call.digest for call in self._may]
        names: list[object] = []
        for call in self._may:
            digest = call.digest
            if digest not in read and written.count(digest) == 1:
                # No answer contains the value itself, only its existence.
                digest = ""
            within = frozenset(n for n, among in enumerate(sets) if call.digest in among)
            names.append((call.action, call.guard, digest, within, call.revision))
        return names
