"""SessionChange: what a group of writes makes of one session.

The values of a session that follow from its messages (count, providers, first and last message)
are kept up to date from the changed messages alone, so that the cost of a write does not depend
on the length of the conversation. One case needs a query: when the first message, the last one or
the one with the greatest sequence is deleted or moves, another takes its place (``stale``). The
backend then reads the ends of the session once the messages of the group are written, and calls
``settle``.
"""

from __future__ import annotations

from typing import NamedTuple

from sagastore_server.storage.model import Message
from sagastore_server.storage.sessions import EXTRACT, Session


class SessionEnds(NamedTuple):
    """The values that follow from the first and the last messages of a session."""

    first_time: int | None
    first_sequence: int
    first_message: str
    last_time: int | None
    last_sequence: int


NO_ENDS = SessionEnds(None, 0, "", None, 0)
"""The ends of a session without messages."""

_NOTHING = ("", "{}", False, 0, (), *NO_ENDS, 0, 0, 0, 0)
"""The values of a session that was never stored, but for its id."""


class SessionChange:
    """Changes of one session in one transaction."""

    def __init__(self, session_id: str, before: Session | None) -> None:
        """Begin with what is stored; None: nothing."""
        self.before = before
        self.changed = False
        self.stale = False
        """Whether the ends must be read after the messages are written."""
        stored = before or Session(session_id, *_NOTHING)
        self.session_id = session_id
        self.title, self.metadata, self.explicit = stored.title, stored.metadata, stored.explicit
        self.message_count = stored.message_count
        self._providers = dict(stored.providers)
        self._set_ends(stored)
        self.created_at, self.updated_at = stored.created_at, stored.updated_at
        self.revision, self.deleting = stored.revision, stored.deleting

    def _set_ends(self, ends: Session | SessionEnds) -> None:
        self._first_time, self._first_sequence = ends.first_time, ends.first_sequence
        self._first_message = ends.first_message
        self._last_time, self._last_sequence = ends.last_time, ends.last_sequence

    @property
    def exists(self) -> bool:
        """As ``Session.exists``."""
        return self.explicit or self.message_count > 0

    def touch(self, revision: int, now: int) -> None:
        """Note a change under ``revision``, at ``now`` in microseconds."""
        self.changed = True
        self.revision, self.updated_at = revision, now

    def add(self, message: Message, now: int) -> None:
        """Note a message that enters the session at ``now``, in microseconds."""
        if not self.exists:
            self.created_at = now if message.created_at is None else message.created_at
        self.message_count += 1
        self._count(message.provider, 1)
        if self.stale:
            return
        time, sequence = message.timestamp, message.sequence
        if self._first_time is None or (time, sequence) < (self._first_time, self._first_sequence):
            self._first_time, self._first_sequence = time, sequence
            self._first_message = message.content[:EXTRACT]
        if self._last_time is None or time > self._last_time:
            self._last_time = time
        self._last_sequence = max(self._last_sequence, sequence)

    def remove(self, message: Message) -> None:
        """Note a message that leaves the session."""
        self.message_count -= 1
        self._count(message.provider, -1)
        if not self.message_count:
            self.settle(NO_ENDS)
        elif (
            message.sequence in {self._first_sequence, self._last_sequence}
            or message.timestamp == self._last_time
        ):
            self.stale = True

    def replace(self, before: Message, after: Message, now: int) -> None:
        """Note a message that changes within the session."""
        if before.position != after.position:
            self.add(after, now)
            self.remove(before)
            return
        if before.provider != after.provider:
            self._count(before.provider, -1)
            self._count(after.provider, 1)
        if self._first_sequence == after.sequence:
            self._first_message = after.content[:EXTRACT]

    def settle(self, ends: SessionEnds) -> None:
        """Set the ends that were read after the messages were written."""
        self._set_ends(ends)
        self.stale = False

    def value(self) -> Session:
        """Return the session as changed so far; its ends are valid only unless it is ``stale``."""
        return Session(
            self.session_id,
            self.title,
            self.metadata,
            self.explicit,
            self.message_count,
            tuple(sorted(self._providers.items())),
            self._first_time,
            self._first_sequence,
            self._first_message,
            self._last_time,
            self._last_sequence,
            self.created_at,
            self.updated_at,
            self.revision,
            self.deleting,
        )

    def _count(self, provider: str, by: int) -> None:
        count = self._providers.get(provider, 0) + by
        if count:
            self._providers[provider] = count
        else:
            del self._providers[provider]


class SessionOutcome:
    """The session as one write leaves it, within a group of writes."""

    def __init__(self, change: SessionChange) -> None:
        """Keep the current value of ``change``."""
        self._change = change
        self._value = change.value()
        self._stale = change.stale

    def resolved(self) -> Session:
        """Return the session, once the group is committed.

        If its ends had to be read again, they are those after the whole group.
        """
        if not self._stale:
            return self._value
        last = self._change.value()
        return self._value._replace(
            first_time=last.first_time,
            first_sequence=last.first_sequence,
            first_message=last.first_message,
            last_time=last.last_time,
            last_sequence=last.last_sequence,
        )
