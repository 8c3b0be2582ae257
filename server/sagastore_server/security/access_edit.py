"""Editor for the access file: adds and removes token entries, and changes nothing else in it.

* Comments, blank lines and the order of all other entries stay as they are.
* The new content is parsed before it is written; if it does not say what was intended, the file
  stays as it is.
* Edits exclude each other, also in different processes, so none is lost. An edit waits for others.
* The file is replaced atomically: after a crash or on a full disk it has the old content or the
  new one, never a part. The next edit removes what a killed one has left.
* Root edits with the rights of the user who controls the path; see ``file_rights``.

The edit works on lines. A TOML library that keeps layout (tomlkit 0.15) does not do as well: it
moves ``[[token]]`` entries that are interleaved with ``[[certificate]]`` entries together, which
separates them from their comments, and it deletes with an entry the comment above the next one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sagastore_server.runtime.file_rights import FileRights
from sagastore_server.runtime.folders import Folder
from sagastore_server.security.access_rules import (
    AccessError,
    NoSuchTokenError,
    Rules,
    TokenEntry,
    parse,
)

TOKEN_PREFIX = "saga_"  # noqa: S105 - not a secret
"""Start of every token, by which scanners for leaked secrets recognise it."""
_TOKEN_BYTES = 32
_LOCK_SECONDS = 60
"""Time that an edit waits for others. One takes some milliseconds."""
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
        NoSuchTokenError: There are none.
        AccessError: The file could not be changed; it has its old content.

    """
    _text(path)  # Fails if the file does not exist, which `_rewrite` would create.
    removed: list[TokenEntry] = []

    def without(text: str) -> str:
        before = _parsed(path, text)
        chosen = _chosen(before.tokens, which)
        if not chosen:
            raise NoSuchTokenError(f"{path} has no token with that name or hash")
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
    """Replace the file atomically by ``change`` of its content. One process at a time can."""
    try:
        rights = FileRights(path)
        with rights.taken():
            real = path.resolve()
            with Folder(real.parent) as folder, folder.locked(f".{real.name}.lock", _LOCK_SECONDS):
                _replace(folder, path, real.name, change)
    except TimeoutError:
        raise AccessError(
            f"{path} was not changed: another change has not ended within {_LOCK_SECONDS} s; end "
            "that command and try again"
        ) from None
    except OSError as exc:
        raise AccessError(
            f"{path} cannot be changed: {exc.strerror}; it has its old content"
        ) from exc


def _replace(folder: Folder, path: Path, name: str, change: Callable[[str], str]) -> None:
    draft = f".{name}.new"
    folder.remove(draft)  # Left by a killed edit: this process has the lock.
    found = folder.read(name)
    text = change("" if found is None else _decoded(path, found.data))
    try:
        folder.write(draft, text.encode(), like=None if found is None else found.status)
        folder.rename(draft, name)
    except BaseException:
        folder.remove(draft)
        raise
    folder.sync()


def _text(path: Path) -> str:
    try:
        with FileRights(path).taken():
            data = path.read_bytes()
    except OSError as exc:
        raise AccessError(f"{path} cannot be read: {exc.strerror}") from exc
    return _decoded(path, data)


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
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
