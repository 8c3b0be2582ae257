"""``make demo``, at a small size: what it tells is true, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import asyncpg

from tests.support.postgres import server_dsn

ROOT = Path(__file__).parents[2]


def test_demo_completes(tmp_path: Path) -> None:
    dsn = server_dsn()
    command = [sys.executable, "-m", "scripts.demo", "--rows", "1000", "--calls", "30"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"SAGASTORE_DEMO_POSTGRES": dsn, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No data was lost." in done.stdout
    assert re.search(r"^  Failed +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^  kill -9 .* rows; restarted$", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    assert asyncio.run(schemas_left(dsn)) == 0


async def schemas_left(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sagastore\\_demo%'"
        )
        return count
    finally:
        await connection.close()
