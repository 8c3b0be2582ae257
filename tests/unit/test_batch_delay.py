"""BatchDelay: no pause for a few calls, longer for many, bounded."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.runtime.batch_delay import FEW, LONGEST, PER_CALL, BatchDelay


def test_there_is_none_at_first() -> None:
    assert BatchDelay().pause(100.0) == 0


@given(st.integers(0, 100_000))
def test_it_grows_with_the_calls_at_hand(calls: int) -> None:
    pace = BatchDelay()
    pace.answered(calls, 100.0)
    if calls <= FEW:
        assert pace.pause(100.0) == 0
    else:
        assert pace.pause(100.0) == pytest.approx(min(LONGEST, calls * PER_CALL))


def test_it_is_over_after_a_time() -> None:
    pace = BatchDelay()
    pace.answered(64, 100.0)
    assert 0 < pace.pause(100.0 + LONGEST / 2) <= LONGEST / 2
    assert pace.pause(100.0 + LONGEST) == 0
    pace.answered(64, 200.0)
    pace.answered(1, 200.0)
    assert pace.pause(200.0) == 0


async def test_what_is_to_begin_is_called_once() -> None:
    loop, pace = asyncio.get_running_loop(), BatchDelay()
    for calls in (0, 64):
        called = asyncio.Event()
        pace.answered(calls, loop.time())
        pace.call(loop, called.set)
        assert not called.is_set()
        await asyncio.wait_for(called.wait(), 30)
