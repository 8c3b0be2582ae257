"""Ledger of sent, acknowledged and observed messages, and their consistency check.

Each id belongs to one client, which makes one call for it at a time. A read may therefore find what
was acknowledged last, or an attempt since then without an answer. An observed value must not
disappear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sagastore import Message

_LETTERS = "bcdfghjkmn"
_BEGINNING = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def message_of(id: str, version: int) -> Message:
    """Return the message of ``version`` of ``id``."""
    return Message(
        "anthropic" if version % 2 else "openai",
        "assistant" if version % 3 else "user",
        f"version {version} of {id}: {word_of(id, version)}",
        id=id,
        tags=(f"version-{version}", "ledger"),
        timestamp=_BEGINNING + timedelta(seconds=version, microseconds=len(id)),
        metadata={"version": version, "of": {"id": id}},
        session_id=session_of(id),
    )


def session_of(id: str) -> str:
    """Return the session of all versions of ``id``, which no other id uses."""
    return f"session of {id}"


def word_of(id: str, version: int) -> str:
    """Return a word that no other version of any id contains and that no stemmer changes."""
    text = "".join(f"{ord(letter):02x}" for letter in id) + f"0{version}"
    return "z" + "".join(_LETTERS[int(letter, 16) % 10] + "q" * (letter > "9") for letter in text)


@dataclass
class _KnownId:
    """Known state of one id."""

    possible: list[Message | None]
    """Possible values: the certain one first, then later attempts; None: no message."""
    revision: int = 0
    """Highest revision in any answer."""
    created_at: datetime | None = None
    """Creation time of the message; None if it may have been recreated."""
    acknowledged: int = 0


@dataclass
class Ledger:
    """Checks reads against writes; every violation is an AssertionError."""

    _known_ids: dict[str, _KnownId] = field(default_factory=dict)
    acknowledged: int = 0
    """Number of acknowledged writes and deletions."""
    unanswered: int = 0
    """Number of calls of unknown outcome."""
    reads: int = 0

    def begin_with(self, messages: Iterable[Message]) -> None:
        """Register initial messages."""
        for message in messages:
            self._known_ids[message.id] = _KnownId([_bare(message)], created_at=message.created_at)

    def attempt(self, id: str, message: Message | None) -> None:
        """Record the start of a save, or (None) of a deletion."""
        known = self._known_ids.setdefault(id, _KnownId([None]))
        known.possible.append(None if message is None else _bare(message))
        self.unanswered += 1

    def acknowledge(self, id: str, message: Message | None, revision: int | None = None) -> None:
        """Record the acknowledgement of the attempt, with ``revision`` if known."""
        known = self._known_ids[id]
        if revision is not None:
            # An earlier unanswered attempt may have stored the same message.
            assert revision >= known.revision, (
                f"{id}: saved at revision {revision} after revision {known.revision} was observed"
            )
            known.revision = revision
        if None in known.possible:
            known.created_at = None
        known.possible = [None if message is None else _bare(message)]
        known.acknowledged += 1
        self.acknowledged += 1
        self.unanswered -= 1

    def saw(self, id: str, message: Message | None, how: str) -> None:
        """Check the result of a read of ``id`` against the possible values."""
        self.reads += 1
        known = self._known_ids[id]
        bare = None if message is None else _bare(message)
        assert bare in known.possible, self._complaint(id, message, how)
        # Among equal values the earliest, because it permits most continuations.
        del known.possible[: known.possible.index(bare)]
        if message is None:
            known.created_at = None
            return
        assert message.revision >= known.revision, (
            f"{id}: {how} found revision {message.revision} after {known.revision} was observed"
        )
        known.revision = message.revision
        if None in known.possible:
            known.created_at = None
        elif known.created_at is not None:
            assert message.created_at == known.created_at, f"{id}: {how}: created_at has changed"
        else:
            known.created_at = message.created_at

    def holds(self, id: str) -> bool:
        """Return whether a message is certainly stored under ``id``."""
        return None not in self._known_ids[id].possible

    def compare(self, stored: Mapping[str, Message]) -> None:
        """Check all stored messages against all known ids."""
        foreign = sorted(stored.keys() - self._known_ids.keys())
        assert not foreign, f"messages that no client wrote: {foreign[:5]}"
        for id in self._known_ids:
            self.saw(id, stored.get(id), "the final read")

    def _complaint(self, id: str, found: Message | None, how: str) -> str:
        what = "nothing" if found is None else f"{found.content!r} (revision {found.revision})"
        may = [None if one is None else one.content for one in self._known_ids[id].possible]
        return f"{id}: {how} found {what}; possible: {may}"


def _bare(message: Message) -> Message:
    """Return the message without the fields that the server sets."""
    return replace(message, created_at=None, revision=0, sequence=0)
