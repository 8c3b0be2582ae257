"""The access file: which tokens and client certificates may do what.

Tokens are long random strings that ``sagastore-server token new`` makes, and the file
has their SHA-256. Salt and a slow hash protect what people think up; nobody can try
2²⁵⁶ strings, and here every call pays for the hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from sagastore_server.ops.files import Content, FileError, WatchedFiles
from sagastore_server.ports.access import AccessControl, Caller, Role
from sagastore_server.ports.errors import UnauthenticatedError

MAX_ENTRIES = 1000
"""Tokens, and certificates, that a file may have: each call is compared with every token."""

TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_MAX_CERTIFICATE_NAME = 512
_SHOWN_NAMES = 5

_log = structlog.get_logger(__name__)


class AccessError(FileError):
    """An access file cannot be used; the line says where it is wrong, and quotes no hash."""


class TokenEntry(NamedTuple):
    """A token that may be used."""

    name: str
    role: Role
    digest: bytes
    """SHA-256 of the token."""
    expires: datetime | None = None


class CertificateEntry(NamedTuple):
    """A name in client certificates, and what they may do."""

    name: str
    role: Role


class Rules(NamedTuple):
    """What an access file says."""

    tokens: tuple[TokenEntry, ...] = ()
    certificates: tuple[CertificateEntry, ...] = ()


class AccessFile(AccessControl):
    """Lets in whom the file names; the file is read again when it changes."""

    is_open = False

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            AccessError: It cannot be used.

        """
        self._path = path
        self._files = WatchedFiles([path])
        self._found: Rules | AccessError | None = None
        self._listeners: list[Callable[[], None]] = []
        (file,) = self._files.read()
        self._enforce(_judged(path, file))

    @property
    def rules(self) -> Rules:
        """What is in force."""
        return self._rules

    def caller(self, token: str | None, certificate_names: Sequence[str]) -> Caller:
        """Tell who calls: by the token if there is one, whatever the certificate says.

        Raises:
            UnauthenticatedError: Nobody who is named in the file, or not any more.

        """
        if token is not None:
            return self._bearer(token)
        known = [self._certificates[n] for n in certificate_names if n in self._certificates]
        if known:
            return max(known, key=lambda caller: caller.role)
        if certificate_names:
            names = ", ".join(repr(name) for name in certificate_names[:_SHOWN_NAMES])
            raise UnauthenticatedError(
                f"the server knows none of the names in this certificate: {names}"
            )
        raise UnauthenticatedError(f"{self._wanted}, and the call came without")

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called when callers may be no longer who they were."""
        self._listeners.append(listener)

    def look(self) -> bool:
        """Look at the file, in any thread; tell whether to look again soon."""
        found = self._files.look()
        if found is not None:
            try:
                self._found = _judged(self._path, found[0])
            except AccessError as exc:
                self._found = exc
        return self._files.is_changing

    def tell(self) -> None:
        """Enforce what the look found if it can be used, and say so in the log."""
        found, self._found = self._found, None
        if isinstance(found, AccessError):
            _log.error("access file not taken over; what it said before holds", reason=str(found))
        elif found is not None:
            self._enforce(found)
            _log.info("access file taken over", file=str(self._path), **_counts(found))
            self._notify()
        elif time.time() >= self._next_expiry:
            self._set_next_expiry()
            self._notify()

    def _bearer(self, token: str) -> Caller:
        digest = digest_of(token)
        found = None
        # All of them, always: how long it takes tells nothing about what is in the file.
        for entry, stored in self._tokens:
            if hmac.compare_digest(stored, digest):
                found = entry
        if found is None:
            raise UnauthenticatedError("the server does not know this token")
        if found.expires is not None and found.expires.timestamp() <= time.time():
            raise UnauthenticatedError(f"the token of {found.name!r} has expired")
        return Caller(found.name, found.role)

    def _enforce(self, rules: Rules) -> None:
        self._rules = rules
        self._tokens = [(entry, entry.digest) for entry in rules.tokens]
        self._certificates = {e.name: Caller(e.name, e.role) for e in rules.certificates}
        both = "a token or a certificate that it knows" if rules.certificates else "a token"
        self._wanted = f"the server wants {both}"
        self._set_next_expiry()

    def _set_next_expiry(self) -> None:
        now = time.time()
        ends = [e.expires.timestamp() for e in self._rules.tokens if e.expires is not None]
        self._next_expiry = min((end for end in ends if end > now), default=float("inf"))

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


def digest_of(token: str) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def parse(text: str) -> Rules:
    """Read the text of an access file.

    Raises:
        AccessError: Something in it is wrong; the line says what, without the file's name.

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


def _judged(path: Path, file: Content) -> Rules:
    """Read an access file, and warn of what is odd about it."""
    if file.problem:
        raise AccessError(f"{path} {file.problem}")
    try:
        rules = parse(file.data.decode("utf-8"))
    except UnicodeDecodeError:
        raise AccessError(f"{path} is not text in UTF-8") from None
    except AccessError as exc:
        raise AccessError(f"{path}: {exc}") from exc
    if file.mode & 0o022:
        _log.warning("access file can be changed by others", file=str(path), do="chmod 600")
    elif file.mode & 0o044:
        _log.warning("access file can be read by others", file=str(path), do="chmod 600")
    if not rules.tokens and not rules.certificates:
        _log.warning("access file lets nobody in", file=str(path))
    return rules


def _counts(rules: Rules) -> dict[str, int]:
    return {"tokens": len(rules.tokens), "certificates": len(rules.certificates)}


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
        raise AccessError(f"{where}: name must be a name as certificates have it")
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
