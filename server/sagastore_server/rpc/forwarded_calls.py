"""Forwarded calls, as the server that receives them sees them.

The header `FORWARDED_KEY` has two words: the identity of the store that the call is meant for
(`ANY` if the forwarder does not know it), and the address of the client. Any client can send it, so
it grants nothing: it is a reason to refuse a call, and a remark in the audit trail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from sagastore_server.interfaces.errors import ForwardedTwiceError, WrongStoreError
from sagastore_server.interfaces.forwarding import FORWARDED_KEY

if TYPE_CHECKING:
    from sagastore_server.interfaces.call_context import CallContext

ANY = "-"
"""Stands for an identity that is not known."""

_MAX_CLIENT = 100
"""Characters of an address that are kept; an IPv6 address with its port has up to 60."""

_RETRY_AFTER = 0.5
"""Seconds in which a forwarder learns of a new holder."""


class WithMetadata(Protocol):
    """The part of gRPC's context that has the headers."""

    def invocation_metadata(self) -> Any:
        """Return the headers, as pairs."""


class ForwardedCalls:
    """Accepts forwarded calls that are meant for this server."""

    def __init__(
        self,
        store_id: Callable[[], str] = str,
        is_forwarder: Callable[[], bool] = bool,
    ) -> None:
        """Accept calls for the store with the identity ``store_id``.

        Args:
            store_id: Returns the identity, or an empty string while it is not known; then calls
                for every store are accepted.
            is_forwarder: Returns whether this server forwards its calls itself.

        """
        self._store_id = store_id
        self._is_forwarder = is_forwarder

    def check(self, call: CallContext, context: WithMetadata) -> None:
        """Note the client of a forwarded call; do nothing about another call.

        Raises:
            ForwardedTwiceError: This server is a forwarder itself.
            WrongStoreError: The call is meant for another store.

        """
        mark = mark_of(context)
        if mark is None:
            return
        if self._is_forwarder():
            raise ForwardedTwiceError(
                "this server forwards its calls to the server with the SQLite file, and the call "
                "came from another such server; forward to the server with the SQLite file",
                retry_after=_RETRY_AFTER,
            )
        wanted, _, client = mark.partition(" ")
        found = self._store_id()
        if wanted != ANY and found and wanted != found:
            raise WrongStoreError(
                "the call was forwarded for another store than the one that this server serves; "
                "check the databases and the addresses (forward_to, advertise) of both servers",
                retry_after=_RETRY_AFTER,
            )
        call.client = client[:_MAX_CLIENT]


def mark_of(context: WithMetadata) -> str | None:
    """Return the header of a forwarded call; None for another call."""
    for key, value in context.invocation_metadata() or ():
        if key == FORWARDED_KEY:
            return value if isinstance(value, str) else ""
    return None


def mark(store_id: str, client: str) -> tuple[str, str]:
    """Return the header of a call for a store (empty: any) from a client with an address."""
    return FORWARDED_KEY, f"{store_id or ANY} {client}"
