"""Rate limiter and load shedding: which calls are refused, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.rpc.grpc_internals import CallCounts
from sagastore_server.rpc.load_shedding import LoadShedder
from sagastore_server.rpc.rate_limiter import RateLimiter


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.floats(0, 2, allow_subnormal=False)), max_size=200
)


@given(STEPS, st.sampled_from([0.5, 1.0, 3.0, 10.0]))
def test_rate_limiter_never_exceeds_the_rate(steps: list[tuple[str, float]], rate: float) -> None:
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
        # A caller is accepted exactly after the returned wait.
        assert 0 < wait <= 1 / rate
        clock.now += wait + 1e-9
        assert rates.take(caller) == 0
        taken[caller] += 1


def test_rate_limiter_has_a_bucket_per_caller() -> None:
    rates = RateLimiter(1, Clock())
    assert rates.take("a") == 0
    assert rates.take("a") > 0
    assert rates.take("b") == 0


def test_rate_limiter_drops_the_least_recent_callers() -> None:
    rates = RateLimiter(1, Clock())
    assert rates.take("first") == 0
    for number in range(20_000):
        rates.take(str(number))
    assert len(rates._buckets) <= 10_000


class Load:
    """Call counts as gRPC reports them."""

    def __init__(self) -> None:
        self.outstanding = 0

    def __call__(self) -> CallCounts:
        return CallCounts(1_000_000 + self.outstanding, 1_000_000)


def refused_share(load_shedder: LoadShedder, calls: int = 3000) -> float:
    """Return the share of the calls that are refused."""
    return sum(load_shedder.should_refuse() for _ in range(calls)) / calls


def test_load_shedder_accepts_calls_up_to_the_limit() -> None:
    load = Load()
    load_shedder = LoadShedder(100, load)
    for outstanding in (0, 99, 100):
        load.outstanding = outstanding
        load_shedder.sample(0.2)
        assert refused_share(load_shedder) == 0


def test_load_shedder_refuses_a_growing_share_up_to_its_maximum() -> None:
    load = Load()
    load_shedder = LoadShedder(100, load)
    shares = []
    for outstanding in (120, 150, 200, 1000, 100_000):
        load.outstanding = outstanding
        load_shedder.sample(0.2)
        shares.append(refused_share(load_shedder))
    assert shares[0] < shares[1] <= shares[2] * 1.2
    assert 0 < shares[0] < 0.2
    # Refusing costs as well: a server that refuses most calls serves none.
    assert all(share < 0.4 for share in shares)
    load.outstanding = 0
    load_shedder.sample(0.2)
    assert refused_share(load_shedder) == 0


def test_queued_calls_without_credentials_are_no_load() -> None:
    load, handed_over = Load(), 0
    load_shedder = LoadShedder(100, load, handed_over=lambda: handed_over)
    load.outstanding = 1000
    for _ in range(20):
        # Of 100 calls that gRPC hands over, two have valid credentials.
        handed_over += 100
        load_shedder.note_arrival()
        load_shedder.note_arrival()
        load_shedder.sample(0.2)
    assert load_shedder.load < 30
    assert refused_share(load_shedder) == 0
    for _ in range(20):
        handed_over += 100
        for _ in range(100):
            load_shedder.note_arrival()
        load_shedder.sample(0.2)
    assert load_shedder.load > 900
    assert refused_share(load_shedder) > 0.2


def test_retry_after_follows_the_number_of_refused_callers() -> None:
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


def test_retry_after_has_jitter() -> None:
    load_shedder = LoadShedder(100, Load())
    waits = [load_shedder.retry_after() for _ in range(1000)]
    assert max(waits) > 1.5 * min(waits)
    assert len(set(waits)) > 900
