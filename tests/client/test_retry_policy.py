from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore import RetryPolicy, UnavailableError
from sagastore._call import History, StreamRetry
from sagastore._retry import Deadline, delay_before_retry
from sagastore.errors import InternalError, ResourceExhaustedError


@given(st.integers(1, 10_000), st.integers())
def test_backoff_stays_within_its_limits(failures: int, seed: int) -> None:
    random.seed(seed)
    policy = RetryPolicy(initial_backoff=0.1, max_backoff=2.0, multiplier=3.0)
    assert 0 <= policy.backoff(failures) <= min(2.0, 0.1 * 3.0 ** min(failures - 1, 64))


def test_backoff_uses_its_whole_range() -> None:
    policy = RetryPolicy(initial_backoff=1.0, max_backoff=8.0)
    waits = [policy.backoff(3) for _ in range(500)]
    assert min(waits) < 0.5
    assert max(waits) > 3.5


def test_delay_is_none_when_retries_are_exhausted() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert delay_before_retry(policy, UnavailableError("x"), 2) is not None
    assert delay_before_retry(policy, UnavailableError("x"), 3) is None
    assert delay_before_retry(policy, InternalError("x"), 1) is None
    assert delay_before_retry(policy, ResourceExhaustedError("x"), 1) is None


def test_attempts_are_not_limited_by_default() -> None:
    assert delay_before_retry(RetryPolicy(), UnavailableError("x"), 10_000) is not None


@given(
    st.floats(0.0, 100.0),
    st.floats(0.0, 60.0) | st.none(),
    st.integers(1, 100),
)
def test_last_wait_ends_before_the_deadline(
    remaining: float, requested: float | None, failures: int
) -> None:
    error = UnavailableError("x", retry_after=requested)
    delay = delay_before_retry(RetryPolicy(), error, failures, remaining)
    least = requested or 0.0
    if delay is None:
        assert remaining < least + 0.02, "time for another attempt was left"
    else:
        assert least <= delay < remaining


def test_misconfiguration_is_not_retried() -> None:
    error = UnavailableError("the certificate is not trusted")
    error.misconfigured = True
    assert delay_before_retry(RetryPolicy(), error, 1) is None


def test_delay_includes_the_server_delay() -> None:
    policy = RetryPolicy(initial_backoff=0.0)
    error = ResourceExhaustedError("x", retry_after=7.0)
    assert delay_before_retry(policy, error, 1) == 7.0


@pytest.mark.parametrize(
    "values",
    [
        {"max_attempts": 0},
        {"initial_backoff": -1},
        {"initial_backoff": 3.0},
        {"max_backoff": math.inf},
        {"multiplier": 0.5},
        {"multiplier": math.nan},
    ],
)
def test_invalid_policies_are_rejected(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**values)  # type: ignore[arg-type]


async def test_deadline_counts_down() -> None:
    endless = Deadline(math.inf)
    assert endless.remaining() is None
    assert endless.leaves_room_for(1e9)
    deadline = Deadline(5.0)
    remaining = deadline.remaining()
    assert remaining is not None
    assert 4 < remaining <= 5
    assert not deadline.leaves_room_for(5.1)
    for timeout in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="timeout must be greater than 0"):
            Deadline(timeout)


def test_history_records_uncertain_attempts() -> None:
    history = History()
    history.note(ResourceExhaustedError("refused, so it did not happen"))
    unsent = UnavailableError("no connection")
    unsent.unsent = True
    history.note(unsent)
    for reason in ("SERVER_STARTING", "SERVER_DRAINING", "HOLDER_UNREACHABLE", "WRONG_STORE"):
        history.note(UnavailableError("rejected on admission", reason=reason))
    before = history.uncertain
    assert not before
    history.note(UnavailableError("the connection broke"))
    assert history.uncertain
    history.note(unsent)
    assert history.uncertain


async def test_stream_retry_before_and_after_progress() -> None:
    policy = RetryPolicy(max_attempts=2, initial_backoff=0.0, max_backoff=0.0)
    retry = StreamRetry(policy, 60.0)
    await retry.pause(UnavailableError("x"), "Export")
    with pytest.raises(UnavailableError):
        await retry.pause(UnavailableError("x"), "Export")
    retry.progress()
    for _ in range(50):
        await retry.pause(UnavailableError("x"), "Export")
    with pytest.raises(InternalError):
        await retry.pause(InternalError("x"), "Export")


async def test_stream_retry_ends_without_progress() -> None:
    retry = StreamRetry(RetryPolicy(initial_backoff=0.0, max_backoff=0.0), 0.05)
    retry.progress()
    paused = 0

    async def go_on() -> None:
        nonlocal paused
        for _ in range(1000):
            await retry.pause(UnavailableError("x", retry_after=0.01), "Export")
            paused += 1

    with pytest.raises(UnavailableError):
        await go_on()
    assert 1 <= paused <= 5


async def test_stream_retry_is_disabled_by_the_policy() -> None:
    retry = StreamRetry(RetryPolicy(max_attempts=1), 60.0)
    retry.progress()
    with pytest.raises(UnavailableError):
        await retry.pause(UnavailableError("x"), "Export")
