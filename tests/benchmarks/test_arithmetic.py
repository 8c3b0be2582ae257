"""Arithmetic of `make bench`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sagastore.v1 import storage_pb2
from tools.benchmarks.bulk_client import read_frames, write_frames
from tools.benchmarks.harness import Sample, compared
from tools.benchmarks.load import Call, Load
from tools.benchmarks.messages import BATCH, batches, get_requests, items, message_id, save_requests
from tools.benchmarks.migrations import _longest_across
from tools.benchmarks.report import write
from tools.benchmarks.results import Row, at_least, at_most, merged, percentile, ratios


def _row(values: list[float], **fields: Any) -> Row:
    row = Row("name", "what", values, at_least(0.85), {}, "calls/s")
    return row._replace(**fields)


def test_ratio_compares_sides_of_same_round() -> None:
    assert ratios([90.0, 50.0], [100.0, 100.0]) == [0.9, 0.5]
    found = {"ours": [Sample(90), Sample(50)], "echo": [Sample(100), Sample(100)]}
    row = compared("save", "Save", found, ("ours", "echo"), "calls/s", target=at_least(0.7))
    assert (row.median, row.spread, row.verdict) == (0.7, (0.5, 0.9), "met")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (_row([0.85, 0.9, 0.1]), "met"),
        (_row([0.84, 0.84, 2.0]), "missed"),
        (_row([1.9], target=at_most(2)), "met"),
        (_row([251.0], target=at_most(250, "ms")), "missed"),
        (_row([0.1], target=None), "shown"),
        (_row([]), "missed"),
        (_row([1.0], failure="calls failed"), "missed"),
        (_row([], failure="not here", skipped=True), "skipped"),
    ],
)
def test_verdicts(row: Row, verdict: str) -> None:
    assert row.verdict == verdict


def test_merged_row_has_values_of_all_visits() -> None:
    first = _row([0.9, 0.8], sides={"ours": [9.0, 8.0]}, notes=("real messages", "1.2 cores"))
    second = _row([0.6], sides={"ours": [6.0]}, notes=("real messages", "1.3 cores"))
    both = merged([first, second])
    assert (both.values, both.sides) == ([0.9, 0.8, 0.6], {"ours": [9.0, 8.0, 6.0]})
    assert both.notes == ("real messages", "1.2 cores", "1.3 cores")
    assert (both.median, both.spread, both.verdict) == (0.8, (0.6, 0.9), "missed")
    assert merged([_row([0.9]), _row([0.9], failure="calls failed")]).verdict == "missed"
    assert merged([first]) == first


def test_percentile_is_a_measured_value() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert math.isnan(percentile([], 0.5))


def test_failed_calls_are_excluded_from_rate() -> None:
    load = Load(2.0, [Call(1, 0.1, ""), Call(2, 0.3, ""), Call(3, 9.0, "Unavailable: x")], 0.1)
    assert load.rate == 1.0
    assert load.latencies == [0.1, 0.3]
    assert load.failures == {"Unavailable: x": 1}


def test_pause_is_longest_overlapping_call() -> None:
    calls = [Call(9.0, 0.5, ""), Call(11.0, 1.5, ""), Call(12.5, 0.2, ""), Call(30.0, 3.0, "")]
    assert _longest_across(calls, 10.0, 12.4) == 1.5


def test_results_file_contains_all_rows(tmp_path: Path) -> None:
    write(tmp_path / "bench.json", [_row([0.9]), _row([])], {"cores": 2})
    told = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [(row["median"], row["verdict"]) for row in told["rows"]] == [
        (0.9, "met"),
        (None, "missed"),
    ]


def test_messages_are_distinct_and_deterministic(tmp_path: Path) -> None:
    some = list(items("a", 0, 1500))
    assert [one.id for one in some] == [message_id("a", number) for number in range(1500)]
    assert len({one.id for one in some} | {one.id for one in items("b", 0, 1500)}) == 3000
    assert some[1000:] == list(items("a", 1000, 500))
    assert save_requests("a", 7, 1)[0]["message"]["id"] == some[7].id
    known = {one.id for one in some}
    assert all(request["id"] in known for request in get_requests("a", 1500, 400))
    write_frames(tmp_path / "frames", batches("a", 0, 1500))
    sent = [storage_pb2.BulkSaveRequest.FromString(one) for one in read_frames(tmp_path / "frames")]
    assert [len(request.messages) for request in sent] == [BATCH, 500]
    assert [one.id for request in sent for one in request.messages] == [one.id for one in some]
