"""Folders and processes of another user, for tests that run as root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

UID = GID = 4242
"""User without an account on the machine."""

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="needs root, to act as two users",
)


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """Provide a folder of the other user and one of root, both reachable by the other user.

    Not in ``tmp_path``, whose parent only root can search.
    """
    base = Path(tempfile.mkdtemp(prefix="sagastore-rights-"))
    try:
        base.chmod(0o755)
        theirs, own = base / "service", base / "root"
        theirs.mkdir(mode=0o700)
        own.mkdir(mode=0o700)
        os.chown(theirs, UID, GID)
        yield theirs, own
    finally:
        shutil.rmtree(base)


def give_away(folder: Path) -> None:
    """Give the files in a folder to the other user."""
    for path in folder.iterdir():
        os.chown(path, UID, GID, follow_symlinks=False)


@contextmanager
def as_other_user(action: Callable[[], None]) -> Iterator[None]:
    """Repeat an action in a process of the other user while the context lasts.

    The action must not import modules, because that user may not be able to read them.
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(GID)
        os.setuid(UID)
        while os.getppid() == parent:
            with suppress(OSError):
                action()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
