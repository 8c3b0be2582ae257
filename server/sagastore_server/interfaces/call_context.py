"""Context of the call that is being served: its id, method, caller and status code.

Errors, spans and log lines read it. Each call has its own, in a context variable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import ContextVar


class CallContext:
    """One call. Its id is created on first use, because few calls need it."""

    __slots__ = ("_id", "caller", "code", "method", "read_id")

    def __init__(self, method: str) -> None:
        """Create the context of a call of ``method``: ``sagastore.v1.StorageService/Save``."""
        self.method = method
        self.caller = ""
        """Name of the caller, once authenticated."""
        self.code = ""
        """Status code, once the call has ended: ``OK``, ``NOT_FOUND``, …"""
        self.read_id: Callable[[], str] | None = None
        """Reads the caller's id for the call from the request; empty if there is none."""
        self._id = ""

    @property
    def id(self) -> str:
        """Id of the call in errors and in the log."""
        # Cleared before the call: gRPC logs headers that it cannot decode, and logging reads `id`.
        read_id, self.read_id = self.read_id, None
        if not self._id and read_id is not None:
            self.adopt(read_id())
        if not self._id:
            self._id = secrets.token_hex(8)
        return self._id

    def adopt(self, given: str) -> None:
        """Use the caller's id if it has 1 to 64 printable ASCII characters and none is set."""
        if not self._id and 0 < len(given) <= 64 and given.isascii() and given.isprintable():
            self._id = given


_current: ContextVar[CallContext | None] = ContextVar("sagastore_call", default=None)


def begin(method: str) -> CallContext:
    """Create the context of a call for the running task and the tasks that it starts."""
    call = CallContext(method)
    _current.set(call)
    return call


def current() -> CallContext | None:
    """Return the context of the call that the running task serves, or None outside of a call."""
    return _current.get()
