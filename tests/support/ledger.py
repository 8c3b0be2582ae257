"""What clients have sent, what was acknowledged and what was seen, and whether that agrees.

Each id belongs to one client, which does one thing with it at a time; so at any moment
there are few things that a reader may find under it: what was acknowledged last, or what
was attempted since without an answer. Whatever has been seen once must stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sagastore import Message

_LETTERS = "bcdfghjkmn"
_BEGINNING = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def message_of(id: str, version: int) -> Message:
    """Return the one message that ``version`` of ``id`` can be."""
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
    """Return the session of all versions of ``id``, which no other id has."""
    return f"session of {id}"


def word_of(id: str, version: int) -> str:
    """Return a word that no other version of any id has, and no stemmer changes."""
    text = "".join(f"{ord(letter):02x}" for letter in id) + f"0{version}"
    return "z" + "".join(_LETTERS[int(letter, 16) % 10] + "q" * (letter > "9") for letter in text)


@dataclass
class _Story:
    """What is known of one id."""

    possible: list[Message | None]
    """What may be stored: what is certain first, then later attempts; None: nothing."""
    revision: int = 0
    """The greatest that anybody was told of."""
    created_at: datetime | None = None
    """Of the message that is there; None where it may have been made anew."""
    acknowledged: int = 0


@dataclass
class Ledger:
    """Holds what is read against what was written; every complaint is an AssertionError."""

    _stories: dict[str, _Story] = field(default_factory=dict)
    acknowledged: int = 0
    """Writes and deletions that were acknowledged."""
    unanswered: int = 0
    """Those of which nobody knows."""
    reads: int = 0

    def begin_with(self, messages: Iterable[Message]) -> None:
        """Know messages that were there before."""
        for message in messages:
            self._stories[message.id] = _Story([_bare(message)], created_at=message.created_at)

    def attempt(self, id: str, message: Message | None) -> None:
        """Take down that ``message`` is about to be sent; None: that ``id`` is to be deleted."""
        story = self._stories.setdefault(id, _Story([None]))
        story.possible.append(None if message is None else _bare(message))
        self.unanswered += 1

    def acknowledge(self, id: str, message: Message | None, revision: int | None = None) -> None:
        """Take down that the attempt was acknowledged, at ``revision`` if that was told."""
        story = self._stories[id]
        if revision is not None:
            # An attempt that nobody heard of may have stored this very message before.
            assert revision >= story.revision, (
                f"{id}: saved at revision {revision}, after {story.revision} was seen"
            )
            story.revision = revision
        if None in story.possible:
            story.created_at = None
        story.possible = [None if message is None else _bare(message)]
        story.acknowledged += 1
        self.acknowledged += 1
        self.unanswered -= 1

    def saw(self, id: str, message: Message | None, how: str) -> None:
        """Hold what a read found under ``id`` against what may be there."""
        self.reads += 1
        story = self._stories[id]
        bare = None if message is None else _bare(message)
        assert bare in story.possible, self._complaint(id, message, how)
        # Of equal ones the earliest: that allows most.
        del story.possible[: story.possible.index(bare)]
        if message is None:
            story.created_at = None
            return
        assert message.revision >= story.revision, (
            f"{id}: {how} found revision {message.revision}, after {story.revision} was seen"
        )
        story.revision = message.revision
        if None in story.possible:
            story.created_at = None
        elif story.created_at is not None:
            assert message.created_at == story.created_at, f"{id}: {how}: created_at has changed"
        else:
            story.created_at = message.created_at

    def holds(self, id: str) -> bool:
        """Tell whether it is certain that a message is stored under ``id``."""
        return None not in self._stories[id].possible

    def compare(self, stored: Mapping[str, Message]) -> None:
        """Hold all that is stored against all that is known."""
        foreign = sorted(stored.keys() - self._stories.keys())
        assert not foreign, f"nobody has written these: {foreign[:5]}"
        for id in self._stories:
            self.saw(id, stored.get(id), "the last look")

    def _complaint(self, id: str, found: Message | None, how: str) -> str:
        what = "nothing" if found is None else f"{found.content!r} (revision {found.revision})"
        may = [None if one is None else one.content for one in self._stories[id].possible]
        return f"{id}: {how} found {what}, and there may be only {may}"


def _bare(message: Message) -> Message:
    """Leave out what the server sets."""
    return replace(message, created_at=None, revision=0)
