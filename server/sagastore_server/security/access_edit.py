"""Changing the access file: entries are added and removed, and all else in it stays as it is."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from sagastore_server.security.access_rules import AccessError, Rules, TokenEntry, parse

TOKEN_PREFIX = "saga_"  # noqa: S105 - not a secret
"""Begins every token, so that those who search for leaked ones find them."""
_TOKEN_BYTES = 32
_MIN_HASH = 8
"""Digits of a hash that name a token."""

_HEADER = re.compile(r"\s*\[\[?\s*[\w\"'.\s-]+\]\]?\s*(#.*)?")
_TOKEN_HEADER = re.compile(r"\s*\[\[\s*token\s*\]\]\s*(#.*)?")
_BY_HAND = "is not written as the command would; change it by hand"


def new_token() -> str:
    """Return a token that nobody can guess: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def read_rules(path: Path) -> Rules:
    """Read an access file.

    Raises:
        AccessError: It is not there, or cannot be used.

    """
    return _parsed(path, _text(path))


def add_token(path: Path, entry: TokenEntry) -> None:
    """Add an entry at the end of the file, which is made if it is not there.

    Raises:
        AccessError: The file cannot be changed; it is as it was.

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
    """Remove the entries with the name ``which``, or whose hash begins so, and return them.

    Raises:
        AccessError: There are none, or the file cannot be changed; it is as it was.

    """
    _text(path)  # A file that is not there shall not be made.
    removed: list[TokenEntry] = []

    def without(text: str) -> str:
        before = _parsed(path, text)
        chosen = _chosen(before.tokens, which)
        if not chosen:
            raise AccessError(f"{path} has no token of that name, or whose hash begins so")
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
    """Leave out the tables of the chosen tokens, by their number; comments between stay."""
    lines = text.splitlines(keepends=True)
    headers = [n for n, line in enumerate(lines) if _HEADER.fullmatch(line.rstrip("\r\n"))]
    tokens = [n for n in headers if _TOKEN_HEADER.fullmatch(lines[n].rstrip("\r\n"))]
    gone: set[int] = set()
    for index in chosen.intersection(range(len(tokens))):
        begin = tokens[index]
        end = next((n for n in headers if n > begin), len(lines))
        while lines[end - 1].lstrip().startswith("#") or not lines[end - 1].strip():
            end -= 1
        gone.update(range(begin, end))
    return "".join(line for n, line in enumerate(lines) if n not in gone)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Put ``change`` of the file in its place, all at once; only one can do that at a time."""
    try:
        real = path.resolve()
        draft = real.with_name(f".{real.name}.new")
        with _exclusive(draft) as fd:
            text = change(_text(path) if real.exists() else "")
            os.write(fd, text.encode())
            _like(fd, real)
            os.fsync(fd)
            draft.replace(real)
        _sync_folder(real.parent)
    except OSError as exc:
        raise AccessError(f"{path} cannot be changed: {exc.strerror}") from exc


@contextlib.contextmanager
def _exclusive(draft: Path) -> Iterator[int]:
    """Make the draft, which nobody else may have made; it is gone in the end."""
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AccessError(
            f"{draft} is there: another change is under way, or was cut off; "
            "try again, and if nobody works on it, remove it"
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)
        draft.unlink(missing_ok=True)


def _like(fd: int, real: Path) -> None:
    """Leave owner and permissions as they are, or the server could not read the file."""
    if not real.exists():
        return
    old, own = real.stat(), os.fstat(fd)
    if hasattr(os, "fchown"):
        if (old.st_uid, old.st_gid) != (own.st_uid, own.st_gid):
            os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Not everywhere.
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
    """Return the text if it says what is expected: TOML can be written in more ways than ours."""
    try:
        if parse(text) == expected:
            return text
    except AccessError:
        pass
    raise AccessError(f"{path} {_BY_HAND}")


def _toml_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
