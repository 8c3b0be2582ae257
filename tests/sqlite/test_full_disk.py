"""Full disk: writes are refused without loss, and succeed again once there is space."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.errors import StorageFullError
from tests.support.backends import opened
from tests.support.drafts import draft, found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted on this machine")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_full_disk_refuses_writes_without_loss(small_disk: Path) -> None:
    path = small_disk / "messages.db"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1 << 20))
    acknowledged: list[str] = []
    store = SQLiteStorage(path)
    async with opened(lambda: store):
        full = 0
        for number in range(500):
            ids = [f"{number}-{n}" for n in range(4)]
            saves = (store.save(draft(one, f"text only{one} " * 200)) for one in ids)
            results = await asyncio.gather(*saves, return_exceptions=True)
            for one, result in zip(ids, results, strict=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, StorageFullError)
                    full += 1
                else:
                    acknowledged.append(one)
            if full > 20:
                break
        assert full > 20
        assert acknowledged
        assert sorted(await store.batch_get(acknowledged)) == sorted(acknowledged)
        assert await found(store, "") == acknowledged
        assert await found(store, "only0-0") == ["0-0"]
        ballast.unlink()
        assert (await store.save(draft("after", "there is room"))).created
        assert await found(store, "room") == ["after"]
    async with opened(lambda: SQLiteStorage(path)) as again:
        assert await found(again, "") == [*acknowledged, "after"]
