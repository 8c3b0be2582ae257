"""Short load with ghz in which no call may fail (`make test-go`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess
from tools.benchmarks.ghz_load import KINDS, reason
from tools.benchmarks.load import find_ghz

ROOT = Path(__file__).parents[2]
CALLS = 100
"""Calls of each kind; a duration would depend on the startup time of ghz."""

OVER = """panic: send on closed channel

goroutine 38 [running]:
github.com/bojand/ghz/load.(*ConstWorkerTicker).Run(0x0?)
\t.../ghz@v0.120.0/load/worker_ticker.go:41 +0x37
created by github.com/bojand/ghz/runner.(*Requester).runWorkers in goroutine 1
\t.../ghz@v0.120.0/runner/requester.go:360 +0xc5
"""
"""Output of ghz 0.120 if its duration ends before its workers start (``--duration=1us``)."""


@pytest.mark.go
def test_load_has_no_failed_calls(tmp_path: Path, running_server: ServerProcess) -> None:
    if find_ghz() is None:
        pytest.skip("needs ghz, which `make ghz` builds with Go")
    options = ["--target", running_server.address, "--calls", str(CALLS), "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmarks.ghz_load", "mix", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        report = json.loads((tmp_path / f"mix-{kind}.json").read_text(encoding="utf-8"))
        assert report["statusCodeDistribution"] == {"OK": CALLS}
        assert f"mix-{kind}" in (tmp_path / f"mix-{kind}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("", "it printed no error"),
        ("usage\n\nghz: error: no such file\n", "ghz: error: no such file"),
        (
            OVER,
            "the duration ended before the first call; increase --seconds or use --calls",
        ),
        (
            "fatal error: out of memory\n\ngoroutine 1:\n\tmain.go:1\n",
            "ghz crashed (fatal error: out of memory)",
        ),
    ],
)
def test_ghz_failure_is_reported_in_one_line(error: str, line: str) -> None:
    assert reason(error) == line
