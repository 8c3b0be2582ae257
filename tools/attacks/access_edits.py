"""Attacks on the access file: parallel edits, killed edits, planted drafts.

As a module it is one of the processes that edit:

    python -m tools.attacks.access_edits FILE NUMBER EDITS
"""

from __future__ import annotations

import json
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sagastore_server.interfaces.access import Role
from sagastore_server.security.access_edit import add_token, read_rules, remove_tokens
from sagastore_server.security.access_rules import AccessError, TokenEntry, digest_of
from tools.attacks.file_attack import FileAttack

_ROOT = Path(__file__).parents[2]
_PROCESSES = 6
_KEPT = 8
"""Tokens that each process keeps; the file may have 1,000."""
_PATIENCE = 30.0
"""Seconds for which an edit that is refused is repeated."""
_TIMEOUT = 3600.0
_KILLED_AT = ("fsync", "replace")
"""Functions of ``os`` at which an edit is killed: the draft is written, or also synced."""
_KILLED = """
import os, signal, sys
from pathlib import Path
from sagastore_server.interfaces.access import Role
from sagastore_server.security.access_edit import add_token
from sagastore_server.security.access_rules import TokenEntry, digest_of

def kill(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

for name in sys.argv[2:]:
    setattr(os, name, kill)
add_token(Path(sys.argv[1]), TokenEntry("killed", Role.READER, digest_of("killed"), None))
"""


def edit(path: Path, number: int, edits: int) -> dict[str, object]:
    """Add and revoke tokens; return those that must be in the file, and the refusals."""
    kept: list[str] = []
    refused = 0
    for index in range(edits):
        name = f"p{number}-{index}"
        if len(kept) < _KEPT:
            refused += _insist(partial(add_token, path, _entry(name)))
            kept.append(name)
        else:
            refused += _insist(partial(remove_tokens, path, kept.pop(0)))
    return {"kept": kept, "refused": refused}


def _entry(name: str) -> TokenEntry:
    return TokenEntry(name, Role.READER, digest_of(name), None)


def _insist(change: Callable[[], object]) -> int:
    """Repeat an edit until it is reported as done; return the refusals.

    Raises:
        AccessError: It was refused for too long.
    """
    until = time.monotonic() + _PATIENCE
    refused = 0
    while True:
        try:
            change()
            return refused
        except AccessError:
            refused += 1
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.0, 0.01))  # noqa: S311 - not a secret


def parallel_edits(folder: Path, attempts: int) -> list[str]:
    """Edit the file in several processes; each reported edit must be in it."""
    path = folder / "access.toml"
    add_token(path, _entry("first"))
    each = max(1, attempts // _PROCESSES)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(path), str(number), str(each)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )
        for number in range(_PROCESSES)
    ]
    expected = {"first"}
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=_TIMEOUT)
        if process.returncode:
            found.append(f"an edit failed: {errors.strip().splitlines()[-1]}")
        else:
            expected.update(json.loads(output)["kept"])
    names = {entry.name for entry in read_rules(path).tokens}
    if lost := expected - names:
        found.append(f"{len(lost)} tokens that were reported as added are missing")
    # A process that failed has not reported its tokens.
    if not found and (back := names - expected):
        found.append(f"{len(back)} tokens that were reported as revoked are valid")
    return found


def killed_edit(folder: Path, attempts: int) -> list[str]:
    """Kill an edit, and repeat it; the next one must work, and the file must be complete."""
    path = folder / "access.toml"
    found = []
    for number in range(attempts):
        for name in _KILLED_AT:
            path.unlink(missing_ok=True)
            add_token(path, _entry("first"))
            killed = subprocess.run(
                [sys.executable, "-c", _KILLED, str(path), name, *_siblings(name)],
                check=False,
                capture_output=True,
                timeout=60,
            )
            if killed.returncode != -signal.SIGKILL:
                found.append(f"the edit was not killed at {name}: {killed.stderr.decode()}")
                continue
            try:
                add_token(path, _entry(f"next-{number}"))
            except AccessError as exc:
                found.append(f"after an edit was killed at {name}: {exc}")
                _remove_drafts(path)
            else:
                found += _complete(path, {"first", f"next-{number}"})
    return found


def _siblings(name: str) -> tuple[str, ...]:
    return {"fsync": ("fdatasync",), "replace": ("rename", "link")}[name]


def _complete(path: Path, expected: set[str]) -> list[str]:
    names = {entry.name for entry in read_rules(path).tokens} - {"killed"}
    return [] if names == expected else [f"the file has the tokens {sorted(names)}"]


def _remove_drafts(path: Path) -> None:
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()


def planted_draft(folder: Path, attempts: int) -> list[str]:
    """Plant links under the names of drafts and locks; an edit must not write through them."""
    del attempts
    path, victim = folder / "access.toml", folder / "victim"
    found = []
    for name in (".access.toml.new", ".access.toml.lock", "access.toml.lock", "access.toml.new"):
        _reset(path, victim)
        link = folder / name
        # A lock file remains from edits before.
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        try:
            add_token(path, _entry("next"))
        except AccessError:
            if {entry.name for entry in read_rules(path).tokens} != {"first"}:
                found.append(f"link {name}: the edit was refused, and the file has changed")
        if victim.read_text() != "victim" or stat.S_IMODE(victim.stat().st_mode) != 0o644:
            found.append(f"link {name}: the edit changed the file it points to")
        link.unlink(missing_ok=True)
    return found


def _reset(path: Path, victim: Path) -> None:
    path.unlink(missing_ok=True)
    add_token(path, _entry("first"))
    victim.unlink(missing_ok=True)
    victim.write_text("victim")
    victim.chmod(0o644)


ATTACKS = (
    FileAttack(
        "parallel-token-edits",
        "six processes add and revoke tokens at the same time",
        parallel_edits,
        short=180,
        long=10_000,
    ),
    FileAttack(
        "killed-token-edit",
        "an edit of the access file is killed before it is complete, and repeated",
        killed_edit,
        short=1,
        long=20,
    ),
    FileAttack(
        "planted-draft",
        "links are planted under the names that an edit of the access file uses",
        planted_draft,
    ),
)


def main() -> None:
    """Edit as one of the processes."""
    path, number, edits = sys.argv[1:]
    print(json.dumps(edit(Path(path), int(number), int(edits))))


if __name__ == "__main__":
    main()
