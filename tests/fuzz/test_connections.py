"""Short run of the fuzzer of connection strings; the long one is in docs/how-to/fuzzing.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_connection_strings_reveal_no_password() -> None:
    # In a process, because the commands configure logging and read the environment.
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz.connections", "--count=70", "--seed=ci"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "70 inputs, 0 failures" in done.stdout
    # Both paths were taken: settings that are refused, and connections that fail.
    assert "config --check: 0" in done.stdout
    assert "config --check: 1" in done.stdout
