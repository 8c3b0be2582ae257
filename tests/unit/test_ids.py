"""UUIDv7 generator."""

from __future__ import annotations

import time
import uuid

from sagastore_server.rpc import ids
from sagastore_server.rpc.ids import IdSource


def test_ids_are_uuid7s_of_the_current_time() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(IdSource().new())
    after = time.time_ns() // 1_000_000
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= after


def test_ids_increase_even_if_the_clock_is_set_back() -> None:
    source = IdSource()
    made = [source.new() for _ in range(20_000)]
    assert made == sorted(set(made))
    # As if the clock had been set back by an hour.
    source._millis += 3_600_000
    made.append(source.new())
    assert made[-1] > made[-2]
    assert source.new() > made[-1]


def test_full_counter_advances_the_timestamp() -> None:
    source = IdSource()
    first = source.new()
    source._millis += 1000
    source._counter = ids._MAX_COUNTER - 1
    last = source.new()
    over = source.new()
    assert first < last < over
    assert uuid.UUID(over).int >> 80 == (uuid.UUID(last).int >> 80) + 1
