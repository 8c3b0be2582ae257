"""History: operations, concurrent appends, and files."""

from __future__ import annotations

import itertools
import json
import random
import threading
from pathlib import Path

import pytest

from tools.chaos.checker import check
from tools.chaos.history import History, Outcome
from tools.chaos.history_generator import HistoryGenerator


def test_operation_times_use_one_clock() -> None:
    history = History(itertools.count(1).__next__)
    save = history.begin(3, "Save", {"value": {"id": "m"}})
    mark = history.mark("kill", who="server")
    save.ok({"revision": 1})
    assert (save.start, mark.at, save.end) == (1, 2, 3)
    assert (save.client, save.outcome, save.answer) == (3, Outcome.OK, {"revision": 1})
    assert mark.facts == {"who": "server"}


def test_operation_cannot_end_twice() -> None:
    operation = History().begin(0, "Get", {"id": "m"})
    operation.unknown("UNAVAILABLE")
    with pytest.raises(ValueError, match="has already ended"):
        operation.ok()


def test_threads_append_concurrently() -> None:
    history = History()

    def append() -> None:
        for _ in range(500):
            history.begin(0, "Get", {"id": "m"}).refused("NOT_FOUND")

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in history] == list(range(2000))
    starts = [one.start for one in history]
    assert starts == sorted(starts)


def test_loaded_history_equals_saved(tmp_path: Path) -> None:
    history = HistoryGenerator(random.Random(1)).make(60)
    history.mark("fault begins", name="kill -9")
    open_one = history.begin(1, "Get", {"id": "m"})
    path = tmp_path / "history.jsonl"
    history.save(path)
    loaded = History.load(path)
    assert [one.as_json() for one in loaded] == [
        json.loads(json.dumps(one.as_json())) for one in history
    ]
    assert loaded.marks == history.marks
    assert loaded.operations[open_one.number].outcome is Outcome.OPEN
    assert check(loaded).as_json() == json.loads(json.dumps(check(history).as_json()))


def test_foreign_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"op": 1}\n')
    with pytest.raises(ValueError, match="is not a history"):
        History.load(path)
