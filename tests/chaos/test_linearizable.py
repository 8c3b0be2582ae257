"""Search for a linearization, compared with brute force on random calls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import strategies  # noqa: F401 - sets the profile
from tools.chaos.linearizable import Verdict, linearize
from tools.chaos.register_model import NEVER, Action, Call, State, dominates, step

DIGESTS = ("a", "b", "c")


def by_trying_everything(calls: Sequence[Call]) -> bool:
    """Try every order that the times allow, with and without each optional call."""
    return _goes_on(list(calls), State())


def _goes_on(left: list[Call], state: State) -> bool:
    if not any(call.must for call in left):
        return True
    for call in left:
        if any(other.must and other.end < call.start for other in left):
            continue
        after = step(call, state)
        if after is not None and _goes_on([one for one in left if one is not call], after):
            return True
    return False


def random_calls(draw: random.Random, count: int) -> list[Call]:
    """Return random calls, about half of them linearizable."""
    return [_random_call(draw, number) for number in range(count)]


def _random_call(draw: random.Random, number: int) -> Call:
    actions = [Action.SAVE] * 5 + [Action.DELETE] * 2 + [Action.FIND] * 3 + list(Action)
    action = draw.choice(actions)
    start = draw.randrange(8)
    call = Call(number, action, start, start + draw.choice((0.5, 2.5, 5.5)))
    told = draw.choice((None, 1, 2, 3, 4))
    if action in {Action.SAVE, Action.SAVE_IF_NEW, Action.FIND}:
        call.digest = draw.choice(DIGESTS)
    if action in {Action.SAVE, Action.FIND, Action.EXISTS}:
        call.revision = told
    if action in {Action.SAVE, Action.DELETE, Action.MISMATCH} and draw.random() < 0.4:
        call.guard = draw.choice((0, 1, 2, 3))
    if action is Action.MISMATCH:
        call.guard, call.revision = call.guard or 1, told
    if action is Action.SAVE and draw.random() < 0.3:
        call.created = draw.random() < 0.5
    if action is Action.OUTSIDE:
        call.among = frozenset(draw.sample(DIGESTS, draw.randrange(1, 3)))
    if call.writes and draw.random() < 0.4:
        return replace(call, must=False, end=NEVER, created=None, revision=None)
    return call


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_search_agrees_with_brute_force(seed: int, count: int) -> None:
    draw = random.Random(seed)
    for _ in range(25):
        calls = random_calls(draw, count)
        verdict = linearize(calls).verdict
        expected = Verdict.YES if by_trying_everything(calls) else Verdict.NO
        assert verdict is expected, calls


@given(st.integers(0, 2**32))
def test_dominating_state_allows_every_continuation(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        states = [_random_state(draw), _random_state(draw)]
        if not dominates(*states):
            continue
        for call in random_calls(draw, 10):
            after = [step(call, state) for state in states]
            if after[1] is not None:
                assert after[0] is not None
                assert dominates(after[0], after[1])


def _random_state(draw: random.Random) -> State:
    digest, floor = draw.choice((None, "a")), draw.randrange(4)
    known = digest is not None and draw.random() < 0.5
    return State(digest, floor + 1, floor + 1) if known else State(digest, None, floor)


def test_search_over_budget_is_undecided() -> None:
    # Many concurrent, indistinguishable writes, and a read of none of them.
    calls = [Call(n, Action.SAVE, 0, 100, digest=f"d{n}", changed=True) for n in range(12)]
    calls += [Call(99, Action.FIND, 200, 201, digest="none", revision=5)]
    decision = linearize(calls, budget=500)
    assert decision.verdict is Verdict.UNDECIDED
    assert decision.configurations > 500


@pytest.mark.parametrize("hot", [500])
def test_long_history_takes_nearly_linear_time(hot: int) -> None:
    calls = []
    for n in range(hot):
        start = 10 * n
        calls.append(Call(2 * n, Action.SAVE, start, start + 25, digest=f"d{n}", revision=n + 1))
        calls.append(
            Call(2 * n + 1, Action.FIND, start, start + 25, digest=f"d{n}", revision=n + 1)
        )
        if n % 10 == 0:
            calls.append(Call(5000 + n, Action.SAVE, start, NEVER, must=False, digest=f"lost{n}"))
    decision = linearize(calls)
    assert decision.verdict is Verdict.YES
    assert decision.configurations < 3 * hot
