"""Access control by the access file, which is reloaded when it changes."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from sagastore_server.interfaces.access import AccessControl, Caller
from sagastore_server.interfaces.errors import UnauthenticatedError
from sagastore_server.security.access_rules import AccessError, Rules, digest_of, parse
from sagastore_server.security.watched_files import Content, WatchedFiles

_SHOWN_NAMES = 5

_log = structlog.get_logger(__name__)


class AccessFile(AccessControl):
    """Authenticates the tokens and client certificates that the access file lists."""

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
        self._enforce(_checked(path, file))

    @property
    def rules(self) -> Rules:
        """The current rules."""
        return self._rules

    def caller(self, token: str | None, certificate_names: Sequence[str]) -> Caller:
        """Return the caller. A token takes precedence over the certificate.

        Raises:
            UnauthenticatedError: The file lists neither, or the token has expired.

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
        raise UnauthenticatedError(f"{self._required}; the call has none")

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change of the rules and each expiry of a token."""
        self._listeners.append(listener)

    def poll(self) -> bool:
        """Check the file, in any thread. Return whether a change has to be confirmed soon."""
        found = self._files.poll()
        if found is not None:
            try:
                self._found = _checked(self._path, found[0])
            except AccessError as exc:
                self._found = exc
        return self._files.is_changing

    def apply(self) -> None:
        """Enforce what the last poll found, unless it is invalid, and log the result."""
        found, self._found = self._found, None
        if isinstance(found, AccessError):
            _log.error("access file not reloaded; the previous rules apply", reason=str(found))
        elif found is not None:
            self._enforce(found)
            _log.info("access file reloaded", file=str(self._path), **_counts(found))
            self._notify()
        elif time.time() >= self._next_expiry:
            self._set_next_expiry()
            self._notify()

    def _bearer(self, token: str) -> Caller:
        digest = digest_of(token)
        found = None
        # Always compares with every entry: the duration reveals nothing about the file.
        for entry, stored in self._tokens:
            if hmac.compare_digest(stored, digest):
                found = entry
        if found is None:
            raise UnauthenticatedError("the server does not know this token")
        if found.expires is not None and found.expires.timestamp() <= time.time():
            raise UnauthenticatedError(f"the token of {found.name!r} has expired")
        return Caller(found.name, found.role, digest.hex()[:12])

    def _enforce(self, rules: Rules) -> None:
        self._rules = rules
        self._tokens = [(entry, entry.digest) for entry in rules.tokens]
        self._certificates = {e.name: Caller(e.name, e.role) for e in rules.certificates}
        known = "a token or a known client certificate" if rules.certificates else "a token"
        self._required = f"the server requires {known}"
        self._set_next_expiry()

    def _set_next_expiry(self) -> None:
        now = time.time()
        ends = [e.expires.timestamp() for e in self._rules.tokens if e.expires is not None]
        self._next_expiry = min((end for end in ends if end > now), default=float("inf"))

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


def _checked(path: Path, file: Content) -> Rules:
    """Parse the file, and log warnings about its permissions and an empty file."""
    if file.problem:
        raise AccessError(f"{path} {file.problem}")
    try:
        rules = parse(file.data.decode("utf-8"))
    except UnicodeDecodeError:
        raise AccessError(f"{path} is not text in UTF-8") from None
    except AccessError as exc:
        raise AccessError(f"{path}: {exc}") from exc
    if file.mode & 0o022:
        _log.warning("other users can change the access file", file=str(path), do="chmod 600")
    elif file.mode & 0o044:
        _log.warning("other users can read the access file", file=str(path), do="chmod 600")
    if not rules.tokens and not rules.certificates:
        _log.warning("access file is empty, so every call is refused", file=str(path))
    return rules


def _counts(rules: Rules) -> dict[str, int]:
    return {"tokens": len(rules.tokens), "certificates": len(rules.certificates)}
