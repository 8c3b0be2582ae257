"""Errors of admission control and of limits on running calls. Their texts are sent to callers."""

from __future__ import annotations

from sagastore_server.storage.errors import StorageError, UnavailableError


class UnauthenticatedError(StorageError):
    """The call has no valid credentials."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(StorageError):
    """The role of the caller does not allow this method."""

    reason = "PERMISSION_DENIED"


class OverloadedError(StorageError):
    """The server is overloaded. The call had no effect."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after: float) -> None:
        """Create the error with the seconds after which to retry."""
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(OverloadedError):
    """The caller exceeds its rate limit. The call had no effect."""

    reason = "RATE_LIMITED"


class SearchTooLongError(StorageError):
    """A search was stopped at its time limit."""

    reason = "SEARCH_TOO_LONG"


class StalledError(UnavailableError):
    """The client did not read the messages of its stream."""

    reason = "CLIENT_STALLED"


class SilentError(UnavailableError):
    """The client did not send the message that its call needs."""

    reason = "CLIENT_SILENT"


class RequestTooLargeError(StorageError):
    """The request exceeds the size limit of its method."""

    reason = "REQUEST_TOO_LARGE"


class NoRequestError(StorageError):
    """The client ended its side of the call without the message that the method requires."""

    reason = "NO_REQUEST"


class HolderUnreachableError(UnavailableError):
    """The server that holds the SQLite file cannot be reached. The call had no effect."""

    reason = "HOLDER_UNREACHABLE"


class HolderLostError(UnavailableError):
    """The connection to the server that holds the SQLite file was lost during the call."""

    reason = "HOLDER_LOST"


class ForwardedTwiceError(UnavailableError):
    """A forwarder has received a call from another forwarder. The call had no effect."""

    reason = "FORWARDED_TWICE"


class WrongStoreError(UnavailableError):
    """A forwarded call is meant for another store. The call had no effect."""

    reason = "WRONG_STORE"
