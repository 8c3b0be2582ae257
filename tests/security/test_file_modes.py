"""Files that the programs create have mode 0600, folders 0700, whatever the umask is."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from sagastore import AsyncClient, Message, Phase
from sagastore.cli.checkpoint import make_private_folder
from sagastore.importers.spool import GIB, copy_bounded
from sagastore.legacy.database import _scratch_copy, copy_private
from sagastore_server.runtime.private_files import make_folder
from tests.cli.command import SAMPLE, Sagastore, many, write_lines
from tests.security.pki import environment
from tests.support.legacy_db import legacy_db, numbered
from tests.support.migration_control import go_to
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess, clean_environment
from tests.support.waiting import eventually, until


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Set a umask that restricts nothing; processes inherit it."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {
        str(one.relative_to(folder)): f"{stat.S_IMODE(one.lstat().st_mode):o}"
        for one in sorted(folder.rglob("*"))
    }


def wrong(folder: Path) -> dict[str, str]:
    """Return what others could use, or its owner alone could not."""
    expected = {True: {"700"}, False: {"600", "400"}}
    return {
        name: mode
        for name, mode in modes(folder).items()
        if mode not in expected[(folder / name).is_dir()]
    }


def server_command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sagastore_server", *options],
        cwd=folder,
        env=clean_environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )


def test_files_of_server_and_command(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    made = server_command(home, "token", "new", "o", "--role", "admin", "--access", "access.toml")
    lines = tmp_path / "in.jsonl"
    lines.write_bytes(SAMPLE.read_bytes() + b'{"provider": "p"}\n')
    env = environment(access=home / "access.toml")
    env["SAGASTORE_AUDIT"] = str(home / "audit.log")
    # The default store, in folders that do not exist.
    store = home / "data" / "sagastore" / "sagastore.db"
    with closing(ServerProcess(home / "unused.db", "--listen", "127.0.0.1:0", env=env)) as server:
        server.spawn(bare=True)
        cli = Sagastore(server.wait_for_event("serving")["address"], home)
        cli.env |= {"SAGASTORE_TOKEN": made.stdout.strip(), "XDG_STATE_HOME": str(home / "a" / "b")}
        cli.ok("import", lines, "--rejects", home / "rejects.jsonl")
        cli.ok("export", home / "out.jsonl")
        interrupted = cli.start("import", write_lines(tmp_path / "many.jsonl", many(20_000)))
        eventually(lambda: list((home / "a").rglob("*.json")) or interrupted.poll() is not None)
        assert interrupted.poll() is None
        interrupted.kill()
        interrupted.wait()
        server_command(home, "backup", "one.db", "--sqlite", str(store))
        server_command(home, "backup", "--keep", "2", "--sqlite", str(store))
        while_open = wrong(home)
        server.terminate()
    server_command(home, "restore", "one.db", "--sqlite", str(store), "--replace")
    assert (while_open, wrong(home)) == ({}, {})
    found = set(modes(home))
    names = ("access.toml", ".access.toml.lock", "audit.log", "rejects.jsonl", "out.jsonl")
    beside = (
        "",
        ".lock",
        ".replaced",
        ".backup.json",
        ".backups",
        ".backups/.sagastore-backup.lock",
    )
    assert found >= {*names, *(f"data/sagastore/sagastore.db{suffix}" for suffix in beside)}
    assert [name for name in found if name.startswith("a/b/sagastore/imports/")]


def test_files_of_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "store" / "memory.db"
    path.parent.mkdir(mode=0o700)
    legacy_db(path, numbered(3))
    path.chmod(0o600)

    async def migrate() -> None:
        async with fresh_schema() as dsn:
            server = ServerProcess(path, env={"SAGASTORE_POSTGRES": dsn})
            with closing(server):
                server.start()
                async with AsyncClient(server.address) as client:
                    await client.save(Message("a", "user", "hello"))
                    await go_to(client, Phase.POSTGRES_ONLY)
                await until(lambda: not path.exists())
                assert wrong(path.parent) == {}

    asyncio.run(migrate())
    names = {"memory.db.archive", "memory.db.before-sagastore", "memory.db.receipt.json"}
    assert names <= set(modes(path.parent))


def test_temporary_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "killed.db"
    legacy_db(source, numbered(3))
    for suffix in ("", "-wal", "-journal"):
        source.with_name(source.name + suffix).touch()
        source.with_name(source.name + suffix).chmod(0o666)
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with ExitStack() as stack:
        _scratch_copy(source, stack)
        copied = temporary / "client.db"
        copy_private(source, copied)
        assert copied.read_bytes() == source.read_bytes()
        with gzip.open(io.BytesIO(gzip.compress(source.read_bytes()))) as text:
            copy_bounded("x", io.BufferedReader(text), temporary / "spooled.db", GIB)
        assert wrong(temporary) == {}
        assert len(modes(temporary)) == 6
        with pytest.raises(FileExistsError):
            copy_private(source, copied)


@pytest.mark.parametrize("make", [make_private_folder, make_folder])
def test_missing_parents_are_private(tmp_path: Path, make: object) -> None:
    assert callable(make)
    (tmp_path / "own").mkdir(mode=0o755)
    for _ in range(2):
        make(tmp_path / "own" / "a" / "b")
    assert modes(tmp_path) == {"own": "755", "own/a": "700", "own/a/b": "700"}
    shutil.rmtree(tmp_path / "own" / "a")
    (tmp_path / "own" / "a").touch()
    with pytest.raises(OSError, match=r"own/a"):
        make(tmp_path / "own" / "a" / "b")
