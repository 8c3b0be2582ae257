"""Line limiter: bytes per second and source, and the count of what is suppressed."""

from __future__ import annotations

import pytest

from sagastore_server.telemetry.line_limiter import (
    OTHERS,
    LineLimiter,
    Rate,
    shown_peer,
    source_of,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def add(limiter: LineLimiter, source: str, size: int) -> bool:
    accepted = limiter.accept(source)
    if accepted:
        limiter.charge(source, size)
    return accepted


def test_source_adds_no_more_than_its_rate() -> None:
    clock = Clock()
    limiter = LineLimiter(Rate(100, 1000), Rate(1e9, 1e9), clock)
    written = 0
    for _ in range(6000):
        written += 300 * add(limiter, "a", 300)
        clock.now += 0.01
    assert 6000 <= written <= 1000 + 100 * 60 + 300
    assert add(limiter, "b", 300)


def test_all_sources_together_are_limited() -> None:
    limiter = LineLimiter(Rate(1, 1000), Rate(1, 5000), Clock())
    accepted = [add(limiter, f"source-{number}", 1000) for number in range(100)]
    assert sum(accepted) == 5
    assert limiter.suppressed == 95


def test_suppressed_lines_are_counted_by_source_even_if_it_is_forgotten() -> None:
    limiter = LineLimiter(Rate(1, 1), Rate(1e9, 1e9), Clock())
    total = 0
    for number in range(10_050):
        add(limiter, f"source-{number}", 1)
        for _ in range(2 if number == 10_049 else 1):
            total += not add(limiter, f"source-{number}", 1)
    counts = limiter.take_suppressed()
    assert len(counts) == 11
    assert counts[0] == ("source-10049", 2)
    assert counts[-1][0] == OTHERS
    assert sum(count for _, count in counts) == total == limiter.suppressed
    assert limiter.take_suppressed() == []


@pytest.mark.parametrize(
    ("peer", "shown", "source"),
    [
        ("ipv4:127.0.0.1:40530", "127.0.0.1:40530", "127.0.0.1"),
        ("ipv6:%5B::1%5D:40530", "[::1]:40530", "::/64"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:1", "[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:1", "[::ffff:10.0.0.7]:1", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "[fe80::1%eth0]:1", "fe80::/64"),
        ("unix:/run/saga.sock", "unix:/run/saga.sock", "unix"),
        ("", "", "unknown"),
    ],
)
def test_source_is_the_address_or_its_network(peer: str, shown: str, source: str) -> None:
    assert shown_peer(peer) == shown
    assert source_of(peer) == source
