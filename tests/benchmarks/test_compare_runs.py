"""Comparison of two benchmark runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.benchmarks.results import Row, at_least


def run(folder: Path, *runs: list[Row]) -> subprocess.CompletedProcess[str]:
    """Write the runs and compare them with the command."""
    paths: list[str] = []
    for rows in runs:
        path = folder / f"{len(paths)}.json"
        found: dict[str, Any] = {"environment": {}, "rows": [row.as_json() for row in rows]}
        path.write_text(json.dumps(found), encoding="utf-8")
        paths.append(str(path))
    command = [sys.executable, "-m", "tools.benchmarks.compare_runs", *paths]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def row(what: str, *values: float) -> Row:
    return Row("save", what, list(values), at_least(0.85), {}, "calls/s")


def test_agreeing_runs_exit_0(tmp_path: Path) -> None:
    plot = Row("plot", "a plot", [], None, {}, "")
    found = run(
        tmp_path,
        [row("a", 0.8, 0.9, 1.0), plot, row("once", 1.0)],
        [row("a", 0.7, 0.7, 0.8), plot, row("once", 2.0)],
    )
    assert found.returncode == 0
    assert (
        "| `save` | a | 0.90 (0.80 - 1.00) | 0.70 (0.70 - 0.80) | ≥ 0.85 | not decided |"
        in found.stdout
    )
    assert "| `save` | once | 1.00 | 2.00 | ≥ 0.85 | met |" in found.stdout
    assert found.stdout.endswith("1 of 1 agree within their spread\n")


def test_disagreeing_runs_exit_1(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        [row("a", 0.9, 1.0), row("b", 0.1, 0.2)],
        [row("a", 0.7, 0.8), row("b", 0.2, 0.3)],
    )
    assert found.returncode == 1
    assert "| `save` | a * |" in found.stdout
    assert (
        "| `save` | b | 0.15 (0.10 - 0.20) | 0.25 (0.20 - 0.30) | ≥ 0.85 | missed |" in found.stdout
    )
    assert "1 of 2 agree" in found.stdout


def test_incomparable_runs_exit_2(tmp_path: Path) -> None:
    found = run(tmp_path, [row("a", 1.0)], [row("b", 1.0)])
    assert (found.returncode, found.stderr) == (2, "error: only one run has: save: a\n")
    other = tmp_path / "other.json"
    other.write_text("[1]", encoding="utf-8")
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "tools.benchmarks.compare_runs",
            str(other),
            str(tmp_path / "0.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (
        2,
        f"error: {other} is not a result file of make bench\n",
    )
