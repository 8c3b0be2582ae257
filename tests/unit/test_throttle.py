"""The pace of the backfill, on a clock that only the tests move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.migration.throttle import MAX_REST, TARGET_RATIO, Throttle
from sagastore_server.storage.migration import Pace

WORK = 0.05
"""Seconds that a batch takes here."""


class Clock:
    """Virtual time, which passes during sleep and work; users write meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.idle_latency = self.busy_latency = 0.0
        """Seconds of one write; 0: there are no writes."""

    def __call__(self) -> float:
        return self.now

    def throttle(self, limit: int = 0) -> Throttle:
        self._throttle = Throttle(limit, clock=self, sleep=self.sleep)
        return self._throttle

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._pass(seconds, self.idle_latency)

    async def batch(self, rows: int = 1000, work: float = WORK) -> float:
        """Copy a batch, and return how long the rest was."""
        with self._throttle.working():
            self._pass(work, self.busy_latency)
        ended = self.now
        await self._throttle.rest(rows, work)
        return self.now - ended

    async def batches(self, count: int) -> None:
        for _ in range(count):
            await self.batch()

    def _pass(self, seconds: float, latency: float) -> None:
        until = self.now + seconds
        while latency and self.now + latency < until:
            self.now += latency
            self._throttle.note_foreground(latency)
        self.now = until


async def test_nobody_writes_and_nothing_rests() -> None:
    clock = Clock()
    throttle = clock.throttle()
    for _ in range(50):
        assert await clock.batch() == 0
    assert throttle.factor == 0
    assert set(clock.slept) == {0}, "others get a turn all the same"


async def test_writes_that_feel_nothing_leave_it_fast() -> None:
    clock = Clock()
    throttle = clock.throttle()
    clock.idle_latency, clock.busy_latency = 0.001, 0.0012
    await clock.batches(200)
    assert 0 < throttle.factor <= 0.1, "a little, to keep measuring the speed of writes"


async def test_writes_that_suffer_make_it_rest_more_and_more() -> None:
    clock = Clock()
    throttle = clock.throttle()
    clock.idle_latency, clock.busy_latency = 0.001, 0.005
    await clock.batches(100)
    assert throttle.factor > 5
    assert await clock.batch() == pytest.approx(throttle.factor * WORK, rel=1e-6)


async def test_it_is_found_anew_when_the_strain_ends() -> None:
    clock = Clock()
    throttle = clock.throttle()
    clock.idle_latency, clock.busy_latency = 0.001, 0.005
    await clock.batches(100)
    clock.busy_latency = 0.001
    await clock.batches(200)
    assert throttle.factor <= 0.1
    clock.idle_latency = clock.busy_latency = 0
    await clock.batches(100)
    assert throttle.factor == 0


async def test_a_system_that_is_slow_anyway_is_not_the_backfills_fault() -> None:
    clock = Clock()
    throttle = clock.throttle()
    clock.idle_latency, clock.busy_latency = 0.010, 0.010 * (TARGET_RATIO - 0.1)
    await clock.batches(400)
    assert throttle.factor <= 0.1


async def test_single_slow_writes_do_not_count() -> None:
    clock = Clock()
    throttle = clock.throttle()
    clock.idle_latency = clock.busy_latency = 0.001
    for number in range(200):
        await clock.batch()
        if number % 10 == 0:
            with throttle.working():
                throttle.note_foreground(3.0)
    assert throttle.factor <= 0.1


async def test_a_write_that_overlapped_a_batch_met_it() -> None:
    clock = Clock()
    throttle = clock.throttle()
    # Writes end in the rests; the slow ones began in the batch before.
    for _ in range(100):
        with throttle.working():
            clock.now += WORK
        clock.now += 0.001
        throttle.note_foreground(0.020)
        clock.now += 0.1
        throttle.note_foreground(0.001)
        await throttle.rest(1000, WORK)
    assert throttle.factor > 1


async def test_a_rest_that_hides_what_it_cures_does_not_last() -> None:
    clock = Clock()
    throttle = clock.throttle()
    clock.idle_latency, clock.busy_latency = 0.001, 0.005
    await clock.batches(100)
    high = throttle.factor
    # From now on writes are too rare to meet a batch.
    clock.idle_latency, clock.busy_latency = 0.4, 0
    await clock.batches(100)
    assert throttle.factor < high / 4


async def test_the_limit_of_the_operator() -> None:
    clock = Clock()
    throttle = clock.throttle(10_000)
    began = clock.now
    await clock.batches(100)
    assert clock.now - began == pytest.approx(10, abs=0.2)
    assert throttle.rate == pytest.approx(10_000, rel=0.05)


async def test_a_limit_that_is_lifted_ends_the_rest_it_caused() -> None:
    clock = Clock()
    throttle = clock.throttle(1)
    real_sleep = clock.sleep

    async def sleep(seconds: float) -> None:
        await real_sleep(seconds)
        if len(clock.slept) == 3:
            throttle.set_rate(0)

    throttle._sleep = sleep
    assert await clock.batch(1000) < 2
    assert await clock.batch(1000) == 0


async def test_the_rate_while_running_and_after() -> None:
    clock = Clock()
    throttle = clock.throttle()
    assert throttle.rate == 0
    await clock.batches(500)
    assert throttle.rate == pytest.approx(1000 / WORK, rel=0.01)
    clock.now += 1000
    assert 0 < throttle.rate < 2


latencies = st.floats(0, 10, allow_nan=False)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10_000),
            st.floats(0, 5, allow_nan=False),
            st.lists(latencies, max_size=40),
            st.lists(latencies, max_size=40),
        ),
        max_size=40,
    )
)
async def test_it_never_rests_beyond_its_bounds(
    batches: list[tuple[int, float, list[float], list[float]]],
) -> None:
    clock = Clock()
    throttle = clock.throttle()
    for rows, worked, busy, idle in batches:
        with throttle.working():
            for seconds in busy:
                throttle.note_foreground(seconds)
            clock.now += worked
        for seconds in idle:
            clock.now += seconds
            throttle.note_foreground(seconds)
        began = clock.now
        await throttle.rest(rows, worked)
        assert 0 <= throttle.factor <= MAX_REST
        assert clock.now - began <= MAX_REST * worked + 0.01
        assert throttle.rate >= 0


@given(
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 2, allow_nan=False)), max_size=25),
)
async def test_the_limit_holds_over_any_stretch(
    limit: int, batches: list[tuple[int, float]]
) -> None:
    clock = Clock()
    throttle = clock.throttle(limit)
    began, copied = clock.now, 0
    for rows, worked in batches:
        clock.now += worked
        await throttle.rest(rows, worked)
        copied += rows
        # A second's worth may have been saved up.
        assert copied <= limit * (clock.now - began + 1) + 1


async def test_pace_tells_what_limits_the_backfill() -> None:
    clock = Clock()
    throttle = clock.throttle()
    assert throttle.pace == (Pace.FULL, "")
    await clock.batches(3)
    assert throttle.pace == (Pace.FULL, "")

    # Clients write, and are not slowed down.
    clock.idle_latency = clock.busy_latency = 0.001
    await clock.batches(200)
    pace, detail = throttle.pace
    assert (pace, detail) == (Pace.LOAD, "clients write; pause of 0.1 times a batch")

    # Batches slow them down, until the pause has shrunk again.
    clock.busy_latency = 0.005
    await clock.batches(300)
    pace, detail = throttle.pace
    assert pace is Pace.LATENCY
    assert detail.startswith("writes took 5.0 ms beside a batch, 1.0 ms without; pause of ")
    clock.busy_latency = 0.001
    await clock.batches(300)
    assert throttle.pace[0] is Pace.LOAD
    clock.idle_latency = clock.busy_latency = 0
    await clock.batches(100)
    assert throttle.pace == (Pace.FULL, "")


async def test_pace_names_the_limit_of_the_operator_only_while_it_decides() -> None:
    clock = Clock()
    throttle = clock.throttle(1500)
    await clock.batches(20)
    assert throttle.pace == (Pace.OPERATOR, "the limit is 1,500 rows/s")
    # The pause for the clients is longer than that for the limit.
    throttle.set_rate(1_000_000)
    clock.idle_latency, clock.busy_latency = 0.001, 0.005
    await clock.batches(200)
    limiting, _ = throttle.pace
    assert limiting is Pace.LATENCY
    throttle.set_rate(0)
    clock.idle_latency = clock.busy_latency = 0
    await clock.batches(100)
    assert throttle.pace == (Pace.FULL, "")
