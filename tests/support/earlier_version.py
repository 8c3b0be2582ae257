"""The wheels of the last version with the previous schema of PostgreSQL, from this repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

from sagastore_server.postgresql.schema import SCHEMA_VERSION
from tests.support.fleet import Code

_ROOT = Path(__file__).parents[2]
_STEPS = "server/sagastore_server/postgresql/schema"


class NoHistoryError(Exception):
    """The checkout lacks the history. One line."""


def previous_commit() -> str:
    """Return the last commit of the main line before the newest schema step.

    Raises:
        NoHistoryError: It is not in this checkout.

    """
    newest = f"{_STEPS}/{SCHEMA_VERSION:04}_*.sql"
    added = _git("log", "--first-parent", "--diff-filter=A", "--format=%H", "--", newest).split()
    if not added:
        raise NoHistoryError(f"no commit of this checkout has added {newest}")
    try:
        return _git("rev-parse", "--verify", f"{added[-1]}^1").strip()
    except NoHistoryError:
        raise NoHistoryError(
            f"the checkout is shallow: the parent of {added[-1]} is absent"
        ) from None


def build(commit: str, folder: Path) -> Code:
    """Build the wheels of a commit below ``folder``, without a network; return their packages."""
    archive = subprocess.run(
        ["git", "archive", commit, "client", "server"], cwd=_ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder / "source", filter="data")
    for package in ("client", "server"):
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
        subprocess.run(
            [*command, str(folder / "wheels"), str(folder / "source" / package)],
            check=True,
            capture_output=True,
        )
    packages = folder / "packages"
    for wheel in (folder / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(packages)  # noqa: S202 - just built
    return (packages,)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_ROOT, check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise NoHistoryError("git is not installed") from None
    if done.returncode:
        raise NoHistoryError(done.stderr.strip().partition("\n")[0])
    return done.stdout
