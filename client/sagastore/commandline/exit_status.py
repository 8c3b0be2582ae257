"""Exit statuses of `sagastore` and `sagastore-server`."""

from __future__ import annotations

from enum import IntEnum
from typing import Self

__all__ = ["ExitStatus", "status_of"]


class ExitStatus(IntEnum):
    """The exit status of a command. Scripts rely on the numbers."""

    meaning: str
    """When a command ends with it."""

    def __new__(cls, number: int, meaning: str) -> Self:
        """Create a member; see the class."""
        status = int.__new__(cls, number)
        status._value_ = number
        status.meaning = meaning
        return status

    DONE = 0, "The command did what was asked."
    FAILED = 1, "The command was refused or failed."
    USAGE = 2, "The command line is invalid; nothing was done."
    NOT_FOUND = 3, "A message, session, file record or token with the given name does not exist."
    UNAVAILABLE = (
        4,
        "The server or a store is unavailable or too slow; a retry may succeed.",
    )
    DENIED = 5, "The token or certificate is missing, unknown or not allowed to do this."
    INCOMPLETE = 6, "An import stored nothing, or with `--strict` not everything."
    INTERRUPTED = 130, "Ctrl+C: 128 + SIGINT."
    PIPE_CLOSED = 141, "The reader of standard output has gone: 128 + SIGPIPE."
    TERMINATED = 143, "Terminated: 128 + SIGTERM."


_STATUSES = {
    "NOT_FOUND": ExitStatus.NOT_FOUND,
    "UNAVAILABLE": ExitStatus.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitStatus.UNAVAILABLE,
    "UNAUTHENTICATED": ExitStatus.DENIED,
    "PERMISSION_DENIED": ExitStatus.DENIED,
}


def status_of(code: str) -> ExitStatus:
    """Return the exit status for the name of a gRPC status code.

    RESOURCE_EXHAUSTED is a failure: if the server is overloaded, the client library has already
    retried the call; if the message is too large, a retry cannot succeed.
    """
    return _STATUSES.get(code, ExitStatus.FAILED)
