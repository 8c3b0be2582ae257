"""PostgreSQL's disk is full: SQLite serves alone, and PostgreSQL catches up once space is free."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from tests.support.drafts import draft
from tests.support.migrating_service import eventually_current, opened_live, walk_to
from tests.support.postgres import PostgresProcess

SQLITE = (Store.SQLITE,)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Mount a disk of 160 MiB: an empty PostgreSQL takes about 60."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    command = [mount, "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("no disk can be mounted on this machine")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def postgres(small_disk: Path) -> Iterator[PostgresProcess]:
    """Run a PostgreSQL on that disk."""
    process = PostgresProcess(small_disk / "pg")
    try:
        yield process.start()
    finally:
        process.stop()


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no room on the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * (1 << 16)):
                pass
        except OSError:
            pass
    yield
    ballast.unlink()


async def write_until_alone(service: MigratingService, seed: int) -> list[str]:
    """Save messages that cannot be compressed until SQLite acknowledges them alone."""
    source = random.Random(seed)
    saved: list[str] = []
    for number in range(400):
        text = " ".join(f"{source.getrandbits(64):x}" for _ in range(500))
        result = await service.backend.save(draft(f"full-{number}", text))
        saved.append(result.id)
        assert (await service.backend.get(result.id)).content == text
        if result.durable_on == SQLITE and number > 20:
            return saved
    raise AssertionError("the disk was not full")


async def test_postgresql_full_disk_loses_nothing(
    postgres: PostgresProcess, small_disk: Path, tmp_path: Path
) -> None:
    async with opened_live(tmp_path / "messages.db", postgres.dsn) as service:
        await service.backend.save(draft("before"))
        await walk_to(service.control, Phase.READ_POSTGRES)
        with filled(small_disk):
            saved = await write_until_alone(service, 1)
            assert (await service.control.status()).reads_from_fallback
            assert set(await service.backend.batch_get(saved)) == set(saved)
        # Without space for its log it may have ended; after a restart it continues.
        postgres.start_again()
        await eventually_current(service.control)
        assert set(await service.backend.batch_get(saved)) == set(saved)
        async for progress in service.control.verify(repair=False):
            assert progress.mismatch_count == 0
