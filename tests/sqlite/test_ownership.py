"""Ownership: one process locks a file; the error for others names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.errors import CannotOpenError
from tests.support.backends import opened
from tests.support.drafts import draft

OWNER = """
import asyncio, sys
from pathlib import Path
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.model import NewMessage

async def main():
    store = SQLiteStorage(Path(sys.argv[1]))
    await store.open()
    await store.save(NewMessage("owned", "p", "r", "text", (), 1, "{}", None))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await store.close()

asyncio.run(main())
"""


@contextmanager
def _owner(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run another process that has the file open until its input ends."""
    command = [sys.executable, "-c", OWNER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            yield process
        finally:
            process.kill()


async def _refusal(path: Path) -> str:
    store = SQLiteStorage(path)
    with pytest.raises(CannotOpenError) as caught:
        await store.open()
    await store.close()
    return str(caught.value)


async def test_second_store_in_process_is_refused(store: SQLiteStorage, path: Path) -> None:
    line = await _refusal(path)
    assert f"process {os.getpid()} " in line
    assert "\n" not in line
    assert (await store.save(draft())).created


async def test_second_process_is_refused(path: Path) -> None:
    with _owner(path) as process:
        line = await _refusal(path)
        assert f"process {process.pid} " in line
        # Refused without harm: a second attempt is refused alike, and the owner works on.
        assert await _refusal(path) == line
        _, _ = process.communicate(timeout=200)
        assert process.returncode == 0
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert (await store.get("owned")).content == "text"


async def test_killed_owner_releases_lock(path: Path) -> None:
    with _owner(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=200)
        async with opened(lambda: SQLiteStorage(path)) as store:
            assert (await store.get("owned")).content == "text"
            revision = (await store.get("owned")).revision
            assert (await store.save(draft())).revision > revision


@pytest.mark.parametrize("hard", [False, True], ids=["symlink", "folder"])
async def test_alias_of_open_file_is_refused(
    store: SQLiteStorage, path: Path, tmp_path: Path, hard: bool
) -> None:
    if hard:
        (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
        alias = tmp_path / "folder" / path.name
    else:
        alias = tmp_path / "alias.db"
        alias.symlink_to(path)
    assert f"process {os.getpid()} " in await _refusal(alias)
    assert (await store.save(draft())).created


async def test_closed_store_can_be_opened_elsewhere(store: SQLiteStorage, path: Path) -> None:
    await store.save(draft())
    await store.close()
    async with opened(lambda: SQLiteStorage(path)) as other:
        assert (await other.get("m-1")).id == "m-1"
