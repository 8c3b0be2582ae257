"""Operator of a round: which states are forbidden."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sagastore import Blocker
from tests.client.failing.test_migration import OURS
from tools.chaos.history import History
from tools.chaos.nemesis import Operator
from tools.chaos.plan import Plan, draw

TAKEN_OVER = replace(
    OURS,
    blockers_to_next=(Blocker("NOT_THE_HOLDER", "another server has taken over"),),
    last_verification=None,
)


def plan_with(*, takeover: bool) -> Plan:
    plans = (draw(seed, lambda _: True) for seed in range(1000))
    return next(plan for plan in plans if plan.takes_over is takeover)


async def reported(*, takeover: bool, by_first: bool) -> bool:
    """Return whether the state of a server that was taken over is a violation."""
    cluster: Any = SimpleNamespace(server=SimpleNamespace(address="127.0.0.1:1"))
    history = History()
    operator = Operator(plan_with(takeover=takeover), cluster, history)
    first = operator._client
    operator.switch_to("127.0.0.1:2")
    try:
        operator.observe(TAKEN_OVER, first if by_first else operator._client)
    finally:
        await operator.close()
    violations = [mark for mark in history.marks if mark.kind == "wrong"]
    assert operator.clean is not bool(violations)
    return bool(violations)


@pytest.mark.parametrize(
    ("takeover", "by_first", "is_violation"),
    [(True, True, False), (True, False, True), (False, True, True)],
)
async def test_only_the_first_server_of_a_takeover_may_be_taken_over(
    takeover: bool, by_first: bool, is_violation: bool
) -> None:
    assert await reported(takeover=takeover, by_first=by_first) is is_violation
