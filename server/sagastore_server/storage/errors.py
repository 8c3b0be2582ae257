"""What can go wrong in storage, in the contract's own words.

Backends translate every driver error into one of these, with ``raise … from``:
no driver exception leaves its room. ``str(error)`` is a public line, fit for
callers: it names no SQL, no driver, no path and no secret. Causes stay in
``__cause__``, for the log.
"""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """One broken rule of a request."""

    field: str
    """The field at fault, as a path: ``message.tags[3]``."""
    reason: str
    """What is wrong and what is allowed, in one line."""


class Blocker(NamedTuple):
    """Something that stands in the way of what was asked."""

    reason: str
    """A stable name, in UPPER_SNAKE_CASE."""
    detail: str
    """What it is and what to do, in one line."""


class StorageError(Exception):
    """Base of everything that the storage contract raises."""

    reason = "STORAGE_ERROR"
    """A stable name for programs, in UPPER_SNAKE_CASE."""


class InvalidRequestError(StorageError):
    """The request breaks rules; all of them are listed."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        """Keep ``violations``, of which there is at least one."""
        super().__init__("; ".join(f"{v.field}: {v.reason}" for v in violations))
        self.violations = violations


class NotFoundError(StorageError):
    """No message has the id."""

    reason = "MESSAGE_NOT_FOUND"

    def __init__(self, message_id: str) -> None:
        """Name the id that was asked for."""
        super().__init__(f"no message has the id {message_id!r}")
        self.message_id = message_id


class AlreadyExistsError(StorageError):
    """The id was required to be new and is not."""

    reason = "MESSAGE_EXISTS"

    def __init__(self, message_id: str, revision: int) -> None:
        """Name the id and the revision that is stored."""
        super().__init__(
            f"a message with the id {message_id!r} exists, at revision {revision}; "
            "if_revision 0 asks for a new one"
        )
        self.message_id = message_id
        self.revision = revision


class RevisionMismatchError(StorageError):
    """The stored revision is not the one that the caller expects."""

    reason = "REVISION_MISMATCH"

    def __init__(self, message_id: str, expected: int, stored: int | None) -> None:
        """Name the id, the revision expected, and the one stored (None: no message)."""
        found = "no message is stored" if stored is None else f"revision {stored} is stored"
        super().__init__(
            f"message {message_id!r}: if_revision is {expected}, but {found}; "
            "read the message again and decide anew"
        )
        self.message_id = message_id
        self.expected = expected
        self.stored = stored


class PreconditionError(StorageError):
    """What was asked is not possible now; every blocker is named, and nothing has changed."""

    reason = "BLOCKED"

    def __init__(self, blockers: tuple[Blocker, ...]) -> None:
        """Keep ``blockers``, of which there is at least one."""
        super().__init__("; ".join(blocker.detail for blocker in blockers))
        self.blockers = blockers


class FencedError(StorageError):
    """Another server holds the migration now. This one must not write any more."""

    reason = "NOT_THE_HOLDER"


class ResponseTooLargeError(StorageError):
    """The answer would be larger than one response may be."""

    reason = "RESPONSE_TOO_LARGE"


class StorageFullError(StorageError):
    """The disk is full. Nothing of the request was stored; it may be sent again."""

    reason = "STORAGE_FULL"
    retry_after = 5.0
    """Seconds after which trying again makes sense."""


class UnavailableError(StorageError):
    """A store cannot be reached or is closing. The request may be sent again."""

    reason = "STORE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        """Say which store and why; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.retry_after = retry_after


class TargetSetBackError(UnavailableError):
    """The target does not hold the position that this server left it at.

    It was restored from a backup, or another copy of it answers. Nothing of the request was
    stored; whoever follows it has to attach again.
    """

    reason = "TARGET_SET_BACK"


class CorruptStoreError(StorageError):
    """The store answered something that it cannot hold. An operator must look."""

    reason = "STORE_CORRUPT"


class CannotOpenError(StorageError):
    """The store cannot be opened; the line says why and what to do.

    Raised while starting only. Nothing was changed.
    """

    reason = "CANNOT_OPEN"


class MovedError(CannotOpenError):
    """The store's messages live elsewhere since a migration was completed."""

    reason = "MOVED"

    def __init__(self, message: str, store_id: str = "") -> None:
        """Tell of the store with ``store_id``; empty: it is not known any more."""
        super().__init__(message)
        self.store_id = store_id
