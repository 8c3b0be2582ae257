from __future__ import annotations

import os
import threading
import time
import uuid

import pytest

from sagastore import _ids, new_id


def test_new_id_is_a_current_uuid_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    id = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000
    assert (id.version, id.variant) == (7, uuid.RFC_4122)
    assert str(id) == str(uuid.UUID(str(id)))
    assert before <= id.int >> 80 <= after + 1


def test_ids_ascend_within_a_millisecond() -> None:
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_ascend_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert new_id() > first


def test_ids_ascend_past_the_end_of_the_random_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    source = _ids._Source()
    first = source.next()
    source._low = (1 << 62) - 1
    second = uuid.UUID(source.next())
    assert second.int >> 80 == 5001
    assert str(second) > first
    assert (second.version, second.variant) == (7, uuid.RFC_4122)


def test_threads_never_share_an_id() -> None:
    found: list[list[str]] = []

    def work() -> None:
        found.append([new_id() for _ in range(5_000)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for ids in found for id in ids}) == 40_000
    assert all(ids == sorted(ids) for ids in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_child_generates_other_ids() -> None:
    new_id()
    source = _ids._source
    _ids._after_fork()
    assert _ids._source is not source
