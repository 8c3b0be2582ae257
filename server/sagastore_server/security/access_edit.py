"""Editor for the access file: adds and removes token entries, and changes nothing else in it.

* Comments, blank lines and the order of all other entries stay as they are.
* The new content is parsed before it is written; if it does not say what was intended, the file
  stays as it is.
* The file is replaced atomically: after a crash or on a full disk it has the old content or the
  new one, never a part.

The edit works on lines. A TOML library that keeps layout (tomlkit 0.15) does not do as well: it
moves ``[[token]]`` entries that are interleaved with ``[[certificate]]`` entries together, which
separates them from their comments, and it deletes with an entry the comment above the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BufferedWriter
from pathlib import Path

from sagastore_server.security.access_rules import AccessError, Rules, TokenEntry, parse

TOKEN_PREFIX = "saga_"  # noqa: S105 - not a secret
"""Start of every token, by which scanners for leaked secrets recognise it."""
_TOKEN_BYTES = 32
_MIN_HASH = 8
"""Hexadecimal digits of a hash that identify a token."""

_HEADER = re.compile(r"\s*\[\[?\s*[\w\"'.\s-]+\]\]?\s*(#.*)?")
_TOKEN_HEADER = re.compile(r"\s*\[\[\s*token\s*\]\]\s*(#.*)?")


def new_token() -> str:
    """Return a token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def read_rules(path: Path) -> Rules:
    """Read an access file.

    Raises:
        AccessError: It does not exist, or is invalid.

    """
    return _parsed(path, _text(path))


def add_token(path: Path, entry: TokenEntry) -> None:
    """Append an entry to the file, which is created if it does not exist.

    Raises:
        AccessError: The file could not be changed; it has its old content.

    """

    def added(text: str) -> str:
        before = _parsed(path, text)
        lines = [
            "[[token]]",
            f'name = "{entry.name}"',
            f'role = "{entry.role.name.lower()}"',
            f'sha256 = "{entry.digest.hex()}"',
        ]
        if entry.expires is not None:
            lines.append(f"expires = {_toml_time(entry.expires)}")
        gap = "\n" if text.endswith("\n") else "\n\n"
        return _verified(
            path,
            (text + gap if text else "") + "\n".join(lines) + "\n",
            Rules((*before.tokens, entry), before.certificates),
        )

    _rewrite(path, added)


def remove_tokens(path: Path, which: str) -> list[TokenEntry]:
    """Remove the entries with the name or the start of the hash ``which``, and return them.

    Raises:
        AccessError: There are none, or the file could not be changed; it has its old content.

    """
    _text(path)  # Fails if the file does not exist, which `_rewrite` would create.
    removed: list[TokenEntry] = []

    def without(text: str) -> str:
        before = _parsed(path, text)
        chosen = _chosen(before.tokens, which)
        if not chosen:
            raise AccessError(f"{path} has no token with that name or hash")
        removed.extend(before.tokens[index] for index in sorted(chosen))
        left = tuple(e for index, e in enumerate(before.tokens) if index not in chosen)
        return _verified(path, _cut(text, chosen), Rules(left, before.certificates))

    _rewrite(path, without)
    return removed


def _chosen(tokens: tuple[TokenEntry, ...], which: str) -> set[int]:
    named = {index for index, entry in enumerate(tokens) if entry.name == which}
    if named or len(which) < _MIN_HASH:
        return named
    prefix = which.lower()
    return {index for index, e in enumerate(tokens) if e.digest.hex().startswith(prefix)}


def _cut(text: str, chosen: set[int]) -> str:
    """Remove the tables of the chosen tokens, given by index; comments after them stay."""
    lines = text.splitlines(keepends=True)
    headers = [n for n, line in enumerate(lines) if _HEADER.fullmatch(line.rstrip("\r\n"))]
    tokens = [n for n in headers if _TOKEN_HEADER.fullmatch(lines[n].rstrip("\r\n"))]
    removed: set[int] = set()
    for index in chosen.intersection(range(len(tokens))):
        begin = tokens[index]
        end = next((n for n in headers if n > begin), len(lines))
        while lines[end - 1].lstrip().startswith("#") or not lines[end - 1].strip():
            end -= 1
        removed.update(range(begin, end))
    return "".join(line for n, line in enumerate(lines) if n not in removed)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Replace the file atomically by ``change`` of its content. Only one process can at a time."""
    try:
        real = path.resolve()
        draft = real.with_name(f".{real.name}.new")
        with _exclusive(draft) as file:
            text = change(_text(path) if real.exists() else "")
            file.write(text.encode())
            file.flush()
            _copy_owner_and_mode(real, file.fileno())
            os.fsync(file.fileno())
            draft.replace(real)
        _sync_folder(real.parent)
    except OSError as exc:
        raise AccessError(
            f"{path} cannot be changed: {exc.strerror}; it has its old content"
        ) from exc


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[BufferedWriter]:
    """Create the draft, which also serves as the lock; remove it unless it was renamed."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AccessError(
            f"{path} exists: another change is in progress, or was interrupted; "
            "try again, and if no other command is running, remove it"
        ) from None
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
    except BaseException:
        # Not after the rename: the name may then belong to the draft of another process.
        path.unlink(missing_ok=True)
        raise


def _copy_owner_and_mode(old: Path, draft: int) -> None:
    """Keep owner and permissions, without which the server could not read the file."""
    if not old.exists() or not hasattr(os, "fchown"):
        return
    wanted, made = old.stat(), os.fstat(draft)
    if (wanted.st_uid, wanted.st_gid) != (made.st_uid, made.st_gid):
        os.fchown(draft, wanted.st_uid, wanted.st_gid)
    os.fchmod(draft, stat.S_IMODE(wanted.st_mode))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Not supported on every platform.
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as exc:
        raise AccessError(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise AccessError(f"{path} is not text in UTF-8") from None


def _parsed(path: Path, text: str) -> Rules:
    try:
        return parse(text)
    except AccessError as exc:
        raise AccessError(f"{path}: {exc}") from exc


def _verified(path: Path, text: str, expected: Rules) -> str:
    """Return ``text`` if it parses to ``expected``: the edit does not know all forms of TOML."""
    try:
        if parse(text) == expected:
            return text
    except AccessError:
        pass
    raise AccessError(
        f"{path} has entries in another form than [[token]] tables; edit it in a text editor"
    )


def _toml_time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
