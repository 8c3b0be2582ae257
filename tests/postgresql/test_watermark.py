"""Watermarks of replicas, compared with positions: over a promotion, with a log of the primary."""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.interfaces.consistency import WalPosition
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.primary_log import PrimaryLog
from sagastore_server.postgresql.watermark import Identity, Watermark, position_of

IDENTITY = Identity(7, 5, 1, None, None)


def mark(timeline: int, lsn: int, at: float = 0.0, system: int = 7) -> Watermark:
    identity = IDENTITY._replace(system=system)
    return Watermark(identity, at, at, True, timeline, lsn, has_receiver=True, silence=0)


def log_of(*samples: tuple[float, int, int]) -> PrimaryLog:
    """Return a log with samples: time, timeline, LSN."""
    log = PrimaryLog(Pool(PostgreSQLOptions("postgresql://none")), 10)
    for at, timeline, lsn in samples:
        log.add(at, WalPosition(7, timeline, lsn))
    return log


class Promotion(NamedTuple):
    """Timeline 2 begins at ``begin``; the primary was seen there first at ``seen``."""

    begin: int
    seen: int
    replayed: int
    """What a standby has replayed, on its way through both timelines."""
    is_ahead: bool
    """Whether its receiver is on timeline 2 already while it replays timeline 1."""

    @property
    def timeline(self) -> int:
        return 2 if self.replayed > self.begin or self.is_ahead else 1


promotions = st.builds(
    lambda begin, more, replayed, is_ahead: Promotion(begin, begin + more, replayed, is_ahead),
    *(st.integers(0, 50), st.integers(0, 50), st.integers(0, 120), st.booleans()),
)


@given(promotions, st.integers(1, 3), st.integers(0, 120))
def test_standby_has_all_that_is_left_of_a_position(
    promotion: Promotion, timeline: int, lsn: int
) -> None:
    log = log_of((0.0, 1, 0), (1.0, 2, promotion.seen))
    standby = mark(promotion.timeline, promotion.replayed)
    # The end of timeline 1 beyond the promotion is lost.
    left = min(lsn, promotion.begin) if timeline == 1 else lsn
    if log.has(standby, WalPosition(7, timeline, lsn)):
        assert promotion.replayed >= left
        assert promotion.timeline >= timeline
    elif timeline <= promotion.timeline:
        # It waits for no more than what the primary had when it was first seen.
        assert promotion.replayed < max(lsn, promotion.seen)
    assert not log.has(mark(promotion.timeline, 1000, system=8), WalPosition(7, timeline, lsn))


def test_age_and_lag() -> None:
    log = log_of((10.0, 1, 100), (11.0, 1, 200), (12.0, 1, 200))
    assert log.age(mark(1, 200), 12.5) == 0.5
    assert log.lag(mark(1, 200), 12.5) == (0.0, 0)
    assert log.age(mark(1, 150), 12.5) == 2.5
    assert log.lag(mark(1, 150), 12.5) == (2.5, 50)
    assert math.isinf(log.age(mark(1, 99), 12.5))
    assert log.lag(mark(1, 99), 12.5) == (2.5, 101)
    # The primary has not answered since, so that the age grows without a lag.
    assert log.age(mark(1, 200), 30.0) == 18.0
    assert math.isinf(log_of().age(mark(1, 200), 0.0))


def test_server_that_is_ahead_of_the_primary_does_not_follow_it() -> None:
    log = log_of((10.0, 1, 100))
    assert log.precedes(mark(1, 100, at=9.0)) is True
    assert log.precedes(mark(1, 101, at=9.0)) is False
    # The primary may have written it since, or was promoted.
    assert log.precedes(mark(1, 101, at=10.5)) is None
    assert log.precedes(mark(2, 101, at=9.0)) is None


@given(st.integers(0, 2**62), st.integers(0, 2**20))
def test_position_includes_the_record_that_is_replayed(replayed: int, more: int) -> None:
    flushed = replayed + more
    position = position_of(IDENTITY, f"{replayed} {flushed} 3")
    assert position is not None
    assert position.timeline == 3
    assert replayed <= position.lsn <= flushed
    assert position.lsn == flushed or position.lsn > replayed


def test_no_position_without_a_receiver_or_from_an_archive() -> None:
    assert position_of(IDENTITY, "100  ") is None
    assert position_of(IDENTITY, "100 99 3") is None
