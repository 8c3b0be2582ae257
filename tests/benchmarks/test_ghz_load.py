"""A short load by ghz, in which no call may fail: `make test-go`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ghz_load import KINDS
from benchmarks.load import find_ghz
from tests.support.server_process import ServerProcess

ROOT = Path(__file__).parents[2]


@pytest.mark.go
def test_no_call_of_a_load_fails(tmp_path: Path, running_server: ServerProcess) -> None:
    if find_ghz() is None:
        pytest.skip("needs ghz, which `make ghz` builds with Go")
    options = ["--target", running_server.address, "--seconds", "1", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ghz_load", "mix", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        report = json.loads((tmp_path / f"mix-{kind}.json").read_text(encoding="utf-8"))
        assert report["count"] > 0
        assert report["statusCodeDistribution"] == {"OK": report["count"]}
        assert f"mix-{kind}" in (tmp_path / f"mix-{kind}.html").read_text(encoding="utf-8")
