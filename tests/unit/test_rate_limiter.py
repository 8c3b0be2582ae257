"""Rates and pressure: who is turned away, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.rpc.grpc_internals import CallCounts
from sagastore_server.rpc.load_shedding import LoadShedder
from sagastore_server.rpc.rate_limiter import RateLimiter


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.floats(0, 2, allow_subnormal=False)), max_size=200
)


@given(STEPS, st.sampled_from([0.5, 1.0, 3.0, 10.0]))
def test_nobody_is_let_in_more_often_than_the_rate_allows(
    steps: list[tuple[str, float]], rate: float
) -> None:
    clock = Clock()
    rates = RateLimiter(rate, clock)
    begin, taken = clock.now, {"a": 0, "b": 0}
    for caller, pause in steps:
        clock.now += pause
        wait = rates.take(caller)
        if not wait:
            taken[caller] += 1
            allowed = max(1.0, rate) + rate * (clock.now - begin)
            assert taken[caller] <= allowed + 1e-6
            continue
        # Who waits as long as they were told is let in, and not much earlier.
        assert 0 < wait <= 1 / rate
        clock.now += wait + 1e-9
        assert rates.take(caller) == 0
        taken[caller] += 1


def test_callers_do_not_share_a_bucket() -> None:
    rates = RateLimiter(1, Clock())
    assert rates.take("a") == 0
    assert rates.take("a") > 0
    assert rates.take("b") == 0


def test_strangers_are_forgotten_in_the_end() -> None:
    rates = RateLimiter(1, Clock())
    assert rates.take("first") == 0
    for number in range(20_000):
        rates.take(str(number))
    assert len(rates._buckets) <= 10_000


class Load:
    """What gRPC would tell."""

    def __init__(self) -> None:
        self.outstanding = 0

    def __call__(self) -> CallCounts:
        return CallCounts(1_000_000 + self.outstanding, 1_000_000)


def turned_away(load_shedder: LoadShedder, calls: int = 3000) -> float:
    """Return the share of the calls that are turned away."""
    return sum(load_shedder.should_refuse() for _ in range(calls)) / calls


def test_nobody_is_turned_away_up_to_the_limit() -> None:
    load = Load()
    load_shedder = LoadShedder(100, load)
    for outstanding in (0, 99, 100):
        load.outstanding = outstanding
        load_shedder.sample(0.2)
        assert turned_away(load_shedder) == 0


def test_more_are_turned_away_the_more_there_are_and_never_most() -> None:
    load = Load()
    load_shedder = LoadShedder(100, load)
    shares = []
    for outstanding in (120, 150, 200, 1000, 100_000):
        load.outstanding = outstanding
        load_shedder.sample(0.2)
        shares.append(turned_away(load_shedder))
    assert shares[0] < shares[1] <= shares[2] * 1.2
    assert 0 < shares[0] < 0.2
    # Refusing costs as well: a server that refuses most calls serves none.
    assert all(share < 0.4 for share in shares)
    load.outstanding = 0
    load_shedder.sample(0.2)
    assert turned_away(load_shedder) == 0


def test_the_wait_grows_with_those_who_were_sent_away_and_shrinks_again() -> None:
    load = Load()
    load_shedder = LoadShedder(100, load)

    def second(served: int, refused: int) -> float:
        for _ in range(20):
            for _ in range(served // 20):
                load_shedder.should_refuse()
            for _ in range(refused // 20):
                load_shedder.retry_after()
            load_shedder.sample(0.2)
        return load_shedder.retry_after()

    assert second(1000, 0) < 0.5
    load.outstanding = 1100
    # A thousand too many, of whom a part may come back: seconds, and at most ten and a half more.
    assert 2 < second(1000, 300) <= 15
    load.outstanding = 50
    for _ in range(30):
        second(1000, 0)
    assert load_shedder.retry_after() < 0.5


def test_those_refused_together_do_not_come_back_together() -> None:
    load_shedder = LoadShedder(100, Load())
    waits = [load_shedder.retry_after() for _ in range(1000)]
    assert max(waits) > 1.5 * min(waits)
    assert len(set(waits)) > 900
