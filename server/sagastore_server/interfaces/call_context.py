"""The call that is being served: what its errors, its spans and its log lines share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import ContextVar


class CallContext:
    """One call. Its id is made when somebody asks, which few calls need."""

    __slots__ = ("_id", "caller", "code", "method", "named_by")

    def __init__(self, method: str) -> None:
        """Begin a call of ``method``: ``sagastore.v1.StorageService/Save``."""
        self.method = method
        self.caller = ""
        """Who calls, once that is known."""
        self.code = ""
        """The status that the call ended with, once it has: ``OK``, ``NOT_FOUND``, …"""
        self.named_by: Callable[[], str] | None = None
        """Tells which id the caller gave, or nothing; asked when the id is."""
        self._id = ""

    @property
    def id(self) -> str:
        """What names the call in errors and in the log."""
        # Asked once: gRPC logs what it cannot read in a header, and the log asks for the id.
        named_by, self.named_by = self.named_by, None
        if not self._id and named_by is not None:
            self.adopt(named_by())
        if not self._id:
            self._id = secrets.token_hex(8)
        return self._id

    def adopt(self, given: str) -> None:
        """Take over the id that the caller gave, if it is short and plain."""
        if not self._id and 0 < len(given) <= 64 and given.isascii() and given.isprintable():
            self._id = given


_current: ContextVar[CallContext | None] = ContextVar("sagastore_call", default=None)


def begin(method: str) -> CallContext:
    """Begin a call in the running task, and in those that it starts."""
    call = CallContext(method)
    _current.set(call)
    return call


def current() -> CallContext | None:
    """Return the call that the running task serves; None outside of any."""
    return _current.get()
