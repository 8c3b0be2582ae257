"""Why a call is not let in, or not served to its end. The lines are public."""

from __future__ import annotations

from sagastore_server.storage.errors import StorageError, UnavailableError


class UnauthenticatedError(StorageError):
    """The caller did not prove who they are."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(StorageError):
    """The caller is known, and may not do this."""

    reason = "PERMISSION_DENIED"


class OverloadedError(StorageError):
    """There is more to do than the server can. Nothing of the call was done."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after: float) -> None:
        """Say what there is too much of; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(OverloadedError):
    """The caller calls more often than they may. Nothing of the call was done."""

    reason = "RATE_LIMITED"


class SearchTooLongError(StorageError):
    """A search took longer than one may, and was stopped."""

    reason = "SEARCH_TOO_LONG"


class StalledError(UnavailableError):
    """The client did not read what it had asked for."""

    reason = "CLIENT_STALLED"
