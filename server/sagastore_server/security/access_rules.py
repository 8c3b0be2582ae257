"""Format of the access file: its entries, and their validation.

Tokens are random strings of 256 bits that ``sagastore-server token new`` makes; the file has their
SHA-256. A salt and a slow hash protect passwords, which people choose. They would add nothing to
256 random bits, and every call would pay for them.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sagastore_server.interfaces.access import Role
from sagastore_server.security.watched_files import FileError

MAX_ENTRIES = 1000
"""Most tokens, and most certificates, in a file: each call is compared with every token."""

TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_MAX_CERTIFICATE_NAME = 512


class AccessError(FileError):
    """The access file is invalid. One line: the place and the problem; it quotes no hash."""


class NoSuchTokenError(AccessError):
    """The access file has no token with the given name or hash."""


class TokenEntry(NamedTuple):
    """A token and its role."""

    name: str
    role: Role
    digest: bytes
    """SHA-256 of the token."""
    expires: datetime | None = None


class CertificateEntry(NamedTuple):
    """A name in client certificates, and its role."""

    name: str
    role: Role


class Rules(NamedTuple):
    """Content of an access file."""

    tokens: tuple[TokenEntry, ...] = ()
    certificates: tuple[CertificateEntry, ...] = ()


def digest_of(token: str) -> bytes:
    """Return the digest of a token, as the access file has it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def parse(text: str) -> Rules:
    """Parse the text of an access file.

    Raises:
        AccessError: It is invalid. The message does not name the file.

    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise AccessError(f"is not valid TOML: {exc}") from exc
    _check_keys("the file", document, ("token", "certificate"))
    tokens = tuple(_token(where, entry) for where, entry in _entries(document, "token"))
    known = tuple(_certificate(where, entry) for where, entry in _entries(document, "certificate"))
    _check_unique([entry.digest for entry in tokens], "two entries are for the same token")
    _check_unique([entry.name for entry in known], "two entries are for the same certificate name")
    return Rules(tokens, known)


def _entries(document: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = document.get(kind, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AccessError(f"{kind} must be a list of tables: write [[{kind}]] above each")
    if len(entries) > MAX_ENTRIES:
        raise AccessError(f"has {len(entries):,} entries [[{kind}]]; {MAX_ENTRIES:,} are allowed")
    for number, entry in enumerate(entries, 1):
        yield f"[[{kind}]] number {number}", entry


def _token(where: str, entry: Mapping[str, Any]) -> TokenEntry:
    _check_keys(where, entry, ("name", "role", "sha256"), ("expires",))
    name, digest, expires = entry["name"], entry["sha256"], entry.get("expires")
    if not isinstance(name, str) or not TOKEN_NAME.fullmatch(name):
        raise AccessError(f"{where}: name must be 1 to 64 letters, digits or . _ @ -")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise AccessError(f"{where}: sha256 must be the 64 hexadecimal digits of the token's hash")
    if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo):
        raise AccessError(f"{where}: expires must be a time with an offset: 2030-01-31T12:00:00Z")
    return TokenEntry(name, _role(where, entry), bytes.fromhex(digest), expires)


def _certificate(where: str, entry: Mapping[str, Any]) -> CertificateEntry:
    _check_keys(where, entry, ("name", "role"))
    name = entry["name"]
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= _MAX_CERTIFICATE_NAME
        or not name.isprintable()
    ):
        raise AccessError(f"{where}: name must be 1 to 512 printable characters")
    return CertificateEntry(name, _role(where, entry))


def _role(where: str, entry: Mapping[str, Any]) -> Role:
    roles = {role.name.lower(): role for role in Role}
    role = entry["role"]
    if not isinstance(role, str) or role not in roles:
        raise AccessError(f"{where}: role must be one of {', '.join(roles)}")
    return roles[role]


def _check_keys(
    where: str, entry: Mapping[str, Any], needed: Sequence[str], more: Sequence[str] = ()
) -> None:
    allowed = (*needed, *more)
    for key in entry:
        if key not in allowed:
            raise AccessError(f"{where}: unknown key {key[:40]!r}; known are {', '.join(allowed)}")
    if where == "the file":
        return
    for key in needed:
        if key not in entry:
            raise AccessError(f"{where}: {key} is missing")


def _check_unique(values: Sequence[object], problem: str) -> None:
    if len(set(values)) < len(values):
        raise AccessError(problem)
