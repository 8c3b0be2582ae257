"""The access file: which tokens and client certificates may do what, while it changes."""

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
