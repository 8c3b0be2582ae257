"""`sagastore-server backup` and `restore`, while a server is running."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.model import OnConflict
from tests.conftest import ServerFactory
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.messages import message
from tests.support.server_process import STARTUP_SECONDS, ServerProcess, clean_environment


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "sagastore_server", *options]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options),
        env=clean_environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=STARTUP_SECONDS,
    )


def refused(folder: Path, *options: str) -> str:
    done = run(folder, *options)
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    return line


class Writing:
    """Saves messages in sequence, and counts the acknowledged ones."""

    def __init__(self, server: ServerProcess) -> None:
        self.count = 0
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._server.channel() as channel:
            storage = StorageServiceStub(channel)
            while not self._stop.is_set():
                one = message(id=f"{self.count:06}")
                storage.Save(storage_pb2.SaveRequest(message=one), timeout=60)
                self.count += 1


def saved_in(server: ServerProcess) -> list[str]:
    with server.channel() as channel:
        answers = StorageServiceStub(channel).Export(storage_pb2.ExportRequest(), timeout=60)
        return [one.id for answer in answers for one in answer.messages]


def test_backup_of_a_server_under_writes_is_consistent(server_process: ServerFactory) -> None:
    server = server_process().start()
    folder, store = server.sqlite.parent, str(server.sqlite)
    with Writing(server) as writing:
        while writing.count < 50:
            time.sleep(0.01)
        before = writing.count
        done = run(folder, "backup", "backup.db", "--sqlite", store, "--json")
        after = writing.count
    assert done.returncode == 0, done
    said = json.loads(done.stdout)
    # It holds every message acknowledged before it began, and a prefix of the later ones.
    assert before <= said["messages"] <= after + 1
    assert said["revision"] == said["messages"]
    assert (said["phase"], said["verified"]) == ("sqlite-only", True)
    assert said["bytes"] == (folder / "backup.db").stat().st_size

    line = refused(folder, "restore", "backup.db", "--sqlite", store, "--replace")
    assert "in use by another SagaStore server" in line
    assert str(server.pid) in line
    assert len(saved_in(server)) == writing.count
    server.kill9()

    assert "--replace" in refused(folder, "restore", "backup.db", "--sqlite", store)
    done = run(folder, "restore", "backup.db", "--sqlite", store, "--replace")
    assert done.returncode == 0, done
    assert f"{said['messages']:,} messages" in done.stdout
    assert f"The previous store is now {store}.replaced" in done.stdout
    assert saved_in(server.restart()) == [f"{n:06}" for n in range(said["messages"])]
    server.terminate()
    # The replaced file still holds every message that the killed server acknowledged.
    old = server_process(sqlite=Path(f"{store}.replaced")).start()
    assert len(saved_in(old)) == writing.count


def test_backup_finds_the_store_by_the_server_settings(tmp_path: Path) -> None:
    async def make(path: Path) -> None:
        async with opened(lambda: SQLiteStorage(path)) as store:
            await store.save(draft("a"))

    asyncio.run(make(tmp_path / "store.db"))
    config = tmp_path / "sagastore.toml"
    config.write_text(f'sqlite = "{tmp_path / "store.db"}"\n')
    done = run(tmp_path, "backup", "backup.db", "--config", str(config))
    assert done.stdout.startswith("backup.db: 1 message, revision 1, phase sqlite-only, ")
    assert ", verified, in " in done.stdout
    line = refused(tmp_path, "backup", "backup.db", "--config", str(config))
    assert line == "sagastore-server: backup.db already exists; a backup never replaces a file"


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_backup_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    async def make(path: Path) -> None:
        async with opened(lambda: SQLiteStorage(path)) as store:
            for part in range(4):
                drafts = [draft(f"{part}-{n}", f"{n} {'words ' * 800}") for n in range(500)]
                await store.bulk_save(drafts, OnConflict.REPLACE)

    store, target = tmp_path / "store.db", tmp_path / "backup.db"
    partial = Path(f"{target}.partial")
    asyncio.run(make(store))
    with subprocess.Popen(
        command("backup", str(target), "--sqlite", str(store)),
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not partial.exists() and running.poll() is None:
            time.sleep(0.001)
        running.send_signal(number)
        output, errors = running.communicate(timeout=STARTUP_SECONDS)
    if running.returncode in {0, -number}:  # It was faster, or done and on its way out.
        assert target.exists()
        assert "verified" in output
    else:
        assert running.returncode == 1
        assert errors == (
            "sagastore-server: interrupted: nothing was made, and no partial file is left\n"
        )
        assert not target.exists()
    assert not list(tmp_path.glob("backup.db.*"))
