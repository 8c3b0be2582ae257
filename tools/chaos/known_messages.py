"""Messages that a workload writes: ids, their last known state, and unique values.

A few ids are hot: all clients contend for them. Most ids get a handful of operations. An id with
too many writes of unknown outcome is retired, because each of them doubles the possible histories.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sagastore import Message
from tools.chaos.values import Value, moment, word_of

HOT = 4
WRITERS = 3
"""Maximum number of concurrent writes to one id."""
UNKNOWN = 6
"""Writes of unknown outcome after which an id is retired."""
FEW = 10
"""Number of writes to an id that is not hot."""
SESSIONS = 6
TAGS = ("amber", "basalt", "cobalt", "ember")

_BEGIN = 1_900_000_000_000_000
_TIMES = 40
"""Number of different timestamps, so that the sequences order many messages."""
_TEXTS = (
    "plain words of a conversation",
    "naïve ☃ 東京 größer",
    "long " * 400,
)


@dataclass
class KnownMessage:
    """Last known state of an id; possibly outdated."""

    id: str
    hot: bool = False
    busy: int = 0
    unknown: int = 0
    writes: int = 0
    revision: int | None = None
    """Latest revision in any answer."""
    last: Value | None = None
    message: Message | None = None
    """Latest message that was sent, for repeated saves."""
    timestamp: int = 0

    @property
    def free(self) -> bool:
        """Whether one more client may write to it."""
        most = WRITERS if self.hot else 2
        return self.busy < most and self.unknown < UNKNOWN and (self.hot or self.writes < FEW)


class KnownMessages:
    """All ids of a workload."""

    def __init__(self, seed: int, draw: random.Random) -> None:
        """Start with hot ids only."""
        self._seed = seed
        self._draw = draw
        self._made = 0
        self._numbers = 0
        self.all: dict[str, KnownMessage] = {}
        self.words: list[str] = []
        """Unique words of the values, in the order of their creation."""
        self.sessions = [f"session {seed}/{number}" for number in range(SESSIONS)]
        self._hot = [self._new(hot=True) for _ in range(HOT)]

    def begin_with(self, value: Value, revision: int) -> None:
        """Add a message that existed before."""
        self.all[value.id] = KnownMessage(
            value.id, revision=revision, last=value, timestamp=value.timestamp
        )

    # ------------------------------------------------------------------ ids

    def one(self) -> KnownMessage:
        """Return an id to read."""
        if self._draw.random() < 0.3:
            return self._draw.choice(self._hot)
        return self.all[self._draw.choice(list(self.all)[-400:])]

    def some(self, most: int) -> list[str]:
        """Return distinct ids to read, sometimes including one that does not exist."""
        ids = self._draw.sample(list(self.all), min(len(self.all), self._draw.randint(1, most)))
        return [*ids, f"absent-{self._draw.randrange(100)}"]

    def free(self, *, known: bool = False) -> KnownMessage:
        """Return an id to write; ``known``: one whose revision is known."""
        for _ in range(8):
            target = self._draw.choice(self._hot) if self._draw.random() < 0.35 else self._cold()
            if target.hot and target.unknown >= UNKNOWN:
                target = self._replace(target)
            if target.free and (target.revision is not None or not known):
                return target
        return self._new()

    def fresh(self, count: int) -> list[KnownMessage]:
        """Return distinct ids for a batch, new and existing ones."""
        chosen = {target.id: target for target in (self._new() for _ in range(count // 2))}
        while len(chosen) < count:
            target = self.free()
            if not target.hot:
                chosen[target.id] = target
        return list(chosen.values())

    def _cold(self) -> KnownMessage:
        if self._draw.random() < 0.3:
            return self._new()
        return self.all[self._draw.choice(list(self.all))]

    def _new(self, *, hot: bool = False) -> KnownMessage:
        self._made += 1
        id = f"{self._draw.randrange(16**5):05x}-{self._seed}-{self._made}"
        timestamp = _BEGIN + self._draw.randrange(_TIMES)
        self.all[id] = KnownMessage(id, hot=hot, timestamp=timestamp)
        return self.all[id]

    def _replace(self, target: KnownMessage) -> KnownMessage:
        target.hot, target.writes = False, FEW
        self._hot = [one for one in self._hot if one is not target]
        self._hot.append(self._new(hot=True))
        return self._hot[-1]

    @contextmanager
    def writing(self, *messages: KnownMessage) -> Iterator[None]:
        """Count a write for the duration of the context."""
        for target in messages:
            target.busy += 1
            target.writes += 1
        try:
            yield
        finally:
            for target in messages:
                target.busy -= 1

    # ------------------------------------------------------------------ values

    def message(self, target: KnownMessage) -> tuple[Message, Value]:
        """Return a new message, or sometimes the last one sent."""
        if target.message is not None and target.last is not None and self._draw.random() < 0.12:
            return target.message, target.last
        draw, number = self._draw, self._numbers
        self._numbers += 1
        if draw.random() < 0.2:
            target.timestamp = _BEGIN + draw.randrange(_TIMES)
        word = word_of(f"{self._seed}.{number}")
        message = Message(
            draw.choice(("openai", "anthropic", "google")),
            draw.choice(("user", "assistant")),
            f"v{number} {word} {draw.choices(_TEXTS, (80, 15, 5))[0]}",
            id=target.id,
            tags=draw.sample(TAGS, draw.randrange(3)),
            timestamp=moment(target.timestamp),
            metadata={"number": number, "nested": {"ä": [1, None, True, "x"]}},
            session_id=draw.choice([*self.sessions, None]),
        )
        value = Value.of(message, (word,))
        target.message, target.last = message, value
        self.words.append(word)
        return message, value
