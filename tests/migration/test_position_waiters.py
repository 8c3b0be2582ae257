"""Waiters for a journal position."""

from __future__ import annotations

from sagastore_server.migration.position_waiters import PositionWaiters


async def test_cancelled_waiters_are_removed() -> None:
    waiters = PositionWaiters()
    kept = [waiters.add(number) for number in range(10)]
    for number in range(1000):
        waiters.add(1_000_000 + number).cancel()
        assert len(waiters) <= 65
    waiters.release(4)
    assert [waiter.done() for waiter in kept] == [True] * 5 + [False] * 5
    waiters.give_up()
    assert [waiter.result() for waiter in kept] == [True] * 5 + [False] * 5
    assert not waiters
