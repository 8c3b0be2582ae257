"""Attacks on `restore` run as root, by the user of the service, who owns the folder of the store.

The victim is a file of root's in another folder. The service user plants links to it under the
names that `restore` writes. Expectation: the victim keeps its owner, its mode and its content.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagastore_server.sqlite.backend import SQLiteStorage
from tests.support.drafts import draft
from tools.attacks.file_attack import SERVICE_USER, FileAttack

_SUFFIXES = ((".lock",), (".owner",), (".restoring",), (".replaced", "-wal", "-shm", "-journal"))
"""Names beside the store that the server or `restore` writes; those of a group are planted
together."""
_CONTENT = "of root\n"
_TIMEOUT = 60.0
_RACE = """
until [ "$(stat -c %s "$2" 2>/dev/null || echo 0)" -ge "$3" ]; do :; done
sleep "$4"; ln -sf "$1" "$2"
"""
"""Replaces the file ``$2`` by a link to ``$1``, ``$4`` seconds after it has ``$3`` bytes: a copy
that has been replaced while it is being written is only damaged."""
_DELAYS = (0.05, 0.1, 0.2, 0.02, 0.4)
"""Seconds; the verification of the copy takes some of them."""
_STORED = 40
"""Messages of 1 MB in the store, so that the copy takes some time."""


class _Scene:
    """A store of the service user, a backup of it, and a file of root's."""

    def __init__(self, folder: Path, messages: int = 1) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self.store = self.state / "saga.db"
        self.backup = folder / "backup.db"
        self.victim = folder / "root" / "victim"
        self.victim.parent.mkdir()
        self.absent = folder / "root" / "absent"
        self._reset()
        asyncio.run(_filled(self.store, messages))
        _command("backup", str(self.backup), "--sqlite", str(self.store))
        for path in (self.state, *self.state.iterdir()):
            os.chown(path, SERVICE_USER, SERVICE_USER)

    def plant(self, name: str, target: Path) -> None:
        """Create a link of the service user, in place of a file of that name."""
        link = self.state / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        os.lchown(link, SERVICE_USER, SERVICE_USER)

    def restore(self) -> None:
        """Run `restore --replace` as root. It may refuse."""
        _command("restore", str(self.backup), "--sqlite", str(self.store), "--replace")

    def damage(self, how: str) -> list[str]:
        """Return what was done to the files of root, and repair it."""
        found = []
        status = self.victim.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != 0:
            found.append(f"{how}: the file of root now belongs to user {status.st_uid}")
        elif stat.S_IMODE(status.st_mode) != 0o600:
            found.append(f"{how}: the file of root now has the mode {status.st_mode & 0o777:o}")
        if self.victim.read_bytes() != _CONTENT.encode():
            found.append(f"{how}: the file of root has other content")
        if self.absent.exists():
            found.append(f"{how}: a file was created in a folder of root")
        self._reset()
        return found

    def _reset(self) -> None:
        self.absent.unlink(missing_ok=True)
        self.victim.unlink(missing_ok=True)
        self.victim.write_text(_CONTENT)
        self.victim.chmod(0o600)


async def _filled(store: Path, messages: int) -> None:
    storage = SQLiteStorage(store)
    await storage.open()
    for number in range(messages):
        await storage.save(draft(id=f"m{number}", content="restored " * 100_000))
    await storage.close()


def _command(*options: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "sagastore_server", *options],
        check=False,
        capture_output=True,
        timeout=_TIMEOUT,
    )


def planted_links(folder: Path, attempts: int) -> list[str]:
    """Plant links to a file of root's, and to an absent one, before `restore` runs."""
    del attempts
    scene = _Scene(folder)
    found = []
    for suffixes, target in itertools.product(_SUFFIXES, (scene.victim, scene.absent)):
        names = [f"saga.db{suffix}" for suffix in suffixes]
        for name in names:
            scene.plant(name, target)
        scene.restore()
        found += scene.damage(f"link {' or '.join(names)} to the {target.name} file")
        for name in names:
            (scene.state / name).unlink(missing_ok=True)
    return found


def store_is_a_link(folder: Path, attempts: int) -> list[str]:
    """Replace the store by a link to a file of root's."""
    del attempts
    scene = _Scene(folder)
    scene.plant("saga.db", scene.victim)
    scene.restore()
    return scene.damage("link saga.db")


def raced_copy(folder: Path, attempts: int) -> list[str]:
    """Replace the copy by a link while `restore` writes it."""
    scene = _Scene(folder, _STORED)
    for number in range(attempts):
        with _racing(scene, _DELAYS[number % len(_DELAYS)]):
            scene.restore()
        if found := scene.damage("link saga.db.restoring before the end of the copy"):
            return found
    return []


@contextmanager
def _racing(scene: _Scene, delay: float) -> Iterator[None]:
    """Run the race once, as the service user."""
    copy = scene.state / "saga.db.restoring"
    size = scene.backup.stat().st_size
    command = ["/bin/sh", "-c", _RACE, "race", *map(str, (scene.victim, copy, size, delay))]
    racer = subprocess.Popen(
        command, user=SERVICE_USER, group=SERVICE_USER, extra_groups=[], cwd="/"
    )
    try:
        yield
    finally:
        racer.kill()
        racer.wait()


ATTACKS = (
    FileAttack(
        "restore-planted-links",
        "root runs restore in a folder with links that the service user has planted",
        planted_links,
        needs_root=True,
    ),
    FileAttack(
        "restore-store-link",
        "root runs restore on a store that the service user has replaced by a link",
        store_is_a_link,
        needs_root=True,
    ),
    FileAttack(
        "restore-race",
        "the service user replaces the copy by a link while root runs restore",
        raced_copy,
        short=5,
        long=50,
        needs_root=True,
    ),
)
