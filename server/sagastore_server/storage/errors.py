"""Errors of the storage contract.

Backends translate every driver error into one of these, with ``raise … from``:
no driver exception leaves its package. ``str(error)`` is one public line: it has no
SQL, no driver name, no path and no secret. Causes are in ``__cause__``, for the log.
"""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """A violated rule of a request."""

    field: str
    """The invalid field, as a path: ``message.tags[3]``."""
    reason: str
    """What is wrong and what is allowed, in one line."""


class Blocker(NamedTuple):
    """An unmet precondition."""

    reason: str
    """A stable name, in UPPER_SNAKE_CASE."""
    detail: str
    """The cause and what to do, in one line."""


class StorageError(Exception):
    """Base class of the errors of the storage contract."""

    reason = "STORAGE_ERROR"
    """A stable name for programs, in UPPER_SNAKE_CASE."""


class InvalidRequestError(StorageError):
    """The request is invalid; all violations are listed."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        """Store ``violations``; there must be at least one."""
        super().__init__("; ".join(f"{v.field}: {v.reason}" for v in violations))
        self.violations = violations

    def __reduce__(self) -> tuple[type[InvalidRequestError], tuple[tuple[Violation, ...]]]:
        """Pickle the violations: a worker process validates large requests."""
        return type(self), (self.violations,)


class NotFoundError(StorageError):
    """No message has the id."""

    reason = "MESSAGE_NOT_FOUND"
    noun = "message"

    def __init__(self, message_id: str) -> None:
        """Report the requested id."""
        super().__init__(f"no {self.noun} has the id {message_id!r}")
        self.message_id = message_id


class SessionNotFoundError(NotFoundError):
    """No session has the id."""

    reason = "SESSION_NOT_FOUND"
    noun = "session"


class FileRecordNotFoundError(NotFoundError):
    """No file record has the id."""

    reason = "FILE_NOT_FOUND"
    noun = "file"


class AlreadyExistsError(StorageError):
    """The id was required to be new and exists."""

    reason = "MESSAGE_EXISTS"
    noun = "message"

    def __init__(self, message_id: str, revision: int) -> None:
        """Report the id and the stored revision."""
        super().__init__(
            f"a {self.noun} with the id {message_id!r} exists, at revision {revision}; "
            "if_revision 0 asks for a new one"
        )
        self.message_id = message_id
        self.revision = revision


class SessionExistsError(AlreadyExistsError):
    """The session was required to be new and exists."""

    reason = "SESSION_EXISTS"
    noun = "session"


class FileRecordExistsError(AlreadyExistsError):
    """The id of a file record was required to be new and exists."""

    reason = "FILE_EXISTS"
    noun = "file"


class RevisionMismatchError(StorageError):
    """The stored revision is not the one that the caller expects."""

    reason = "REVISION_MISMATCH"
    noun = "message"

    def __init__(self, message_id: str, expected: int, stored: int | None) -> None:
        """Report the id, the expected revision and the stored one (None: nothing)."""
        found = f"no {self.noun} is stored" if stored is None else f"revision {stored} is stored"
        super().__init__(
            f"{self.noun} {message_id!r}: if_revision is {expected}, but {found}; "
            f"read the {self.noun} again and decide anew"
        )
        self.message_id = message_id
        self.expected = expected
        self.stored = stored


class SessionRevisionMismatchError(RevisionMismatchError):
    """The revision of the session is not the one that the caller expects."""

    reason = "SESSION_REVISION_MISMATCH"
    noun = "session"


class FileRevisionMismatchError(RevisionMismatchError):
    """The revision of the file record is not the one that the caller expects."""

    reason = "FILE_REVISION_MISMATCH"
    noun = "file"


class PreconditionError(StorageError):
    """Preconditions are not met. All blockers are listed, and nothing has changed."""

    reason = "BLOCKED"

    def __init__(self, blockers: tuple[Blocker, ...]) -> None:
        """Store ``blockers``; there must be at least one."""
        super().__init__("; ".join(blocker.detail for blocker in blockers))
        self.blockers = blockers


class NotReplicatedError(PreconditionError):
    """PostgreSQL has no synchronous standby, and a setting requires one. Nothing was stored.

    The setting is ``postgres_require_sync``.
    """

    reason = "NOT_REPLICATED"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """Report the cause and the remedy.

        ``retry_after``: seconds after which the write may be repeated, because the standby has
        only just been lost; None: the standby must be started first.
        """
        super().__init__((Blocker(self.reason, message),))
        self.retry_after = retry_after


class FencedError(StorageError):
    """Another server has taken over the migration. This one must not write."""

    reason = "NOT_THE_HOLDER"


class ResponseTooLargeError(StorageError):
    """The answer exceeds the size limit of a response."""

    reason = "RESPONSE_TOO_LARGE"


class StorageFullError(StorageError):
    """The disk is full. Nothing was stored; the request may be retried."""

    reason = "STORAGE_FULL"
    retry_after = 5.0
    """Seconds after which a retry makes sense."""


class UnavailableError(StorageError):
    """A store is unavailable or closing. The request may be retried."""

    reason = "STORE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        """Report the store and the cause; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.retry_after = retry_after


class OutdatedServerError(UnavailableError):
    """A newer server has upgraded the schema, and this one must not write to it any more.

    Nothing was stored. Other servers accept the request.
    """

    reason = "SERVER_OUTDATED"

    def __init__(self, compatible_from: int, supported: int) -> None:
        """Report the oldest schema version whose servers may write, and that of this server."""
        super().__init__(
            "a newer server has upgraded the schema of the PostgreSQL store, which now needs "
            f"servers that support schema version {compatible_from} or newer; this one supports "
            f"up to {supported} and writes nothing; replace it by the newer version",
            retry_after=0.1,
        )
        self.versions = (compatible_from, supported)


class TargetSetBackError(UnavailableError):
    """The target does not have the position that it confirmed to this server.

    It was restored from a backup, or a standby answers. Nothing was stored; the replicator must
    attach the target again.
    """

    reason = "TARGET_SET_BACK"


class StaleReadError(UnavailableError):
    """The session has changed since it was read for this write; nothing was stored."""

    reason = "SESSION_CHANGED"

    def __init__(self, session_id: str) -> None:
        """Report the session."""
        super().__init__(f"session {session_id!r} was changed by another request; try again")


class CorruptStoreError(StorageError):
    """The store returned invalid data. An operator must inspect it."""

    reason = "STORE_CORRUPT"


class CannotOpenError(StorageError):
    """The store cannot be opened; the text says why and what to do.

    Raised while starting only. Nothing was changed.
    """

    reason = "CANNOT_OPEN"


class MovedError(CannotOpenError):
    """The migration of this store is complete; its messages are in another store."""

    reason = "MOVED"

    def __init__(self, message: str, store_id: str = "") -> None:
        """Report the store with ``store_id``; empty: unknown."""
        super().__init__(message)
        self.store_id = store_id
