"""Context of the call that is being served: its id, method, caller and status code.

Errors, spans and log lines read it. Each call has its own, in a context variable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagastore_server.interfaces.access import Caller
    from sagastore_server.interfaces.audit import Describe
    from sagastore_server.interfaces.consistency import Consistency, WalPosition


class CallContext:
    """One call. Its id is created on first use, because few calls need it."""

    __slots__ = (
        *("_id", "caller", "code", "consistency", "describe", "identity", "is_position_lost"),
        *("method", "peer"),
        *("position", "read_certificate", "read_id", "refusal", "request", "response"),
    )

    def __init__(self, method: str) -> None:
        """Create the context of a call of ``method``: ``sagastore.v1.StorageService/Save``."""
        self.method = method
        self.caller = ""
        """Name of the caller, once authenticated."""
        self.code = ""
        """Status code, once the call has ended: ``OK``, ``NOT_FOUND``, …"""
        self.peer = ""
        """Address of the client, as gRPC writes it: ``ipv4:127.0.0.1:40530``."""
        self.identity: Caller | None = None
        """The caller, once authenticated."""
        self.read_certificate: Callable[[], Mapping[str, Any]] | None = None
        """Reads the properties of the client certificate."""
        self.describe: Describe | None = None
        """Describes ``request`` and ``response``, while a call runs that changes the store."""
        self.request: Any = None
        self.response: Any = None
        self.consistency: Consistency | None = None
        """Which state the reads of the call must see (``consistency``); None: the latest."""
        self.position: WalPosition | None = None
        """The highest position that the call has written or seen and that is known."""
        self.is_position_lost = False
        """Whether the position of something that the call has written or seen is not known."""
        self.refusal = ""
        """Text of the error that ended the call."""
        self.read_id: Callable[[], str] | None = None
        """Reads the caller's id for the call from the request; empty if there is none."""
        self._id = ""

    @property
    def known_id(self) -> str:
        """Id of the call if it was used already; otherwise empty. Reading it may take 6 µs."""
        return self._id

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
