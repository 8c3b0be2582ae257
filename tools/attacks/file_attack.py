"""Definition of attacks on files and processes, with their expectation."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SERVICE_USER = 65_534
"""User and group id of the service in attacks on root; every system has this user."""


@dataclass(frozen=True)
class FileAttack:
    """An attack by a user of the machine, with a check of what it achieved."""

    name: str
    what: str
    """What is done, in one line."""
    run: Callable[[Path, int], list[str]]
    """Attacks in a folder, with a number of attempts; returns what was wrong, one line each."""
    short: int = 1
    """Attempts in tests."""
    long: int = 1
    """Attempts by ``make attacks``."""
    needs_root: bool = False


@dataclass
class FileResult:
    """Outcome of a `FileAttack`."""

    attack: FileAttack
    sent: str = ""
    skipped: str = ""
    """Why it did not run."""
    complaints: list[str] = field(default_factory=list)
    """What was wrong, one line each; empty if the expectation is met."""


def reason_to_skip(attack: FileAttack) -> str:
    """Return why the attack cannot run here, or an empty string."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if attack.needs_root and os.geteuid() != 0:
        return "needs root"
    return ""


def performed(attack: FileAttack, *, short: bool) -> FileResult:
    """Run ``attack`` in a new folder that every user can reach."""
    if skipped := reason_to_skip(attack):
        return FileResult(attack, skipped=skipped)
    attempts = attack.short if short else attack.long
    with shared_folder() as folder:
        complaints = attack.run(folder, attempts)
    return FileResult(attack, f"{attempts:,} attempts", complaints=complaints)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Create a folder that the service user can enter; remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="attacks-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)
