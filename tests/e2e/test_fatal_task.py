"""A background task with the policy FATAL fails: the server ends with one line and status 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys
from sagastore_server import app
from sagastore_server.cli.main import cli
from sagastore_server.runtime.supervisor import Policy, Supervisor
from sagastore_server.sqlite.backend import SQLiteStorage

failing_in, *arguments = sys.argv[1:]

async def doomed():
    raise OSError("no space left")

class FailingSupervisor(Supervisor):
    def start(self, name, main, policy=Policy.RESTART):
        if name != failing_in:
            return super().start(name, main, policy)
        return super().start("doomed", doomed, Policy.FATAL)

async def never(self):
    import asyncio
    await asyncio.Event().wait()

app.Supervisor = FailingSupervisor
if failing_in == "load-sampler":  # It starts before the store is opened.
    SQLiteStorage.open = never
cli(arguments)
"""


@pytest.mark.parametrize("failing_in", ["load-sampler", "store-watch"])
def test_fatal_task_ends_the_server_with_one_line(tmp_path: Path, failing_in: str) -> None:
    options = ["--sqlite", str(tmp_path / "saga.db"), "--listen", "127.0.0.1:0", "--ops-listen=off"]
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM, failing_in, "serve", *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 1
    *_, line = process.stderr.splitlines()
    assert "background task doomed failed: OSError: no space left" in line
    assert "restart" in line
    # The store was closed in order: its log is empty.
    assert not (tmp_path / "saga.db-wal").exists()
