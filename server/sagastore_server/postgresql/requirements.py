"""Requirements of reads, compared with the positions of PostgreSQL (``interfaces.consistency``)."""

from __future__ import annotations

from sagastore_server.interfaces.consistency import LATEST, Consistency, Level, WalPosition
from sagastore_server.postgresql.errors import RETRY_AFTER
from sagastore_server.storage.errors import InvalidRequestError, UnavailableError, Violation

FIELD = "consistency.at_least"
"""The field of the requests that positions come from."""

_OTHER_SYSTEM = (
    "is a position of another PostgreSQL, so it says nothing about this one (the data may have "
    "been moved); leave it empty to read the latest state"
)


def resolved(wanted: Consistency, system: int) -> Consistency:
    """Return a requirement for one cluster: the latest state, a single position, or neither.

    Args:
        wanted: The requirement of a call.
        system: The cluster that it is read from.

    Raises:
        InvalidRequestError: The caller requires a position of another cluster.

    """
    required, seen = wanted.position, wanted.seen
    if required is not None and required.system != system:
        raise InvalidRequestError((Violation(FIELD, _OTHER_SYSTEM),))
    if seen is None:
        return wanted
    if seen.system != system:
        # The page token is older than the move of the data to this cluster. The latest state is
        # what a caller without a position gets.
        return LATEST
    return Consistency(Level.AT_LEAST, seen if required is None else max(required, seen))


def check(least: WalPosition, position: WalPosition) -> None:
    """Check that the primary, which was read at ``position``, has reached ``least``.

    The positions belong to the same cluster. On a later timeline, the primary has everything of
    ``least`` that the promotion has kept.

    Raises:
        UnavailableError: It has not.

    """
    if least.timeline > position.timeline:
        raise UnavailableError(
            f"the required position is of timeline {least.timeline} of PostgreSQL, and the latest "
            f"primary that this server finds is on timeline {position.timeline}; try again",
            retry_after=RETRY_AFTER,
        )
    if least > position:
        raise UnavailableError(
            "the required position is beyond the end of the log of PostgreSQL, which was restored "
            "to an earlier state or has lost its last writes; try again, or read the latest state "
            "without consistency.at_least",
            retry_after=RETRY_AFTER,
        )
