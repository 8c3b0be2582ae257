"""What a workload writes about: ids, what was last known of each, and values nobody has.

A few ids are hot: all clients contend for them. Most have a handful of operations. An id
with too many writes of which nobody knows is left alone from then on, for each of them
doubles what may have happened.
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
"""Writes of one id that are under way at the same time, at most."""
UNKNOWN = 6
"""Writes of one id of which nobody knows, before it is left alone."""
FEW = 10
"""Writes of an id that is not hot."""
SESSIONS = 6
TAGS = ("amber", "basalt", "cobalt", "ember")

_BEGIN = 1_900_000_000_000_000
_TEXTS = (
    "plain words of a conversation",
    "naïve ☃ 東京 größer",
    "long " * 400,
)


@dataclass
class KnownMessage:
    """An id, as far as a client remembers; nothing of it is relied upon."""

    id: str
    hot: bool = False
    busy: int = 0
    unknown: int = 0
    writes: int = 0
    revision: int | None = None
    """The latest that anybody was told."""
    last: Value | None = None
    message: Message | None = None
    """The latest that was sent, for those who send it again."""
    timestamp: int = 0

    @property
    def free(self) -> bool:
        """Whether one more may write it."""
        most = WRITERS if self.hot else 2
        return self.busy < most and self.unknown < UNKNOWN and (self.hot or self.writes < FEW)


class KnownMessages:
    """All ids of a workload."""

    def __init__(self, seed: int, draw: random.Random) -> None:
        """Begin with hot ones only."""
        self._seed = seed
        self._draw = draw
        self._made = 0
        self._numbers = 0
        self.all: dict[str, KnownMessage] = {}
        self.words: list[str] = []
        """Of every value, in the order of their making."""
        self.sessions = [f"session {seed}/{number}" for number in range(SESSIONS)]
        self._hot = [self._new(hot=True) for _ in range(HOT)]

    def begin_with(self, value: Value, revision: int) -> None:
        """Know a message that was there before."""
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
        """Return different ids to read, and now and then one that nobody has."""
        ids = self._draw.sample(list(self.all), min(len(self.all), self._draw.randint(1, most)))
        return [*ids, f"nobody-{self._draw.randrange(100)}"]

    def free(self, *, known: bool = False) -> KnownMessage:
        """Return an id to write; ``known``: of which a revision was told."""
        for _ in range(8):
            target = self._draw.choice(self._hot) if self._draw.random() < 0.35 else self._cold()
            if target.hot and target.unknown >= UNKNOWN:
                target = self._replace(target)
            if target.free and (target.revision is not None or not known):
                return target
        return self._new()

    def fresh(self, count: int) -> list[KnownMessage]:
        """Return different ids for a batch, new ones and some that are there."""
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
        timestamp = _BEGIN + self._draw.randrange(10**10)
        self.all[id] = KnownMessage(id, hot=hot, timestamp=timestamp)
        return self.all[id]

    def _replace(self, target: KnownMessage) -> KnownMessage:
        target.hot, target.writes = False, FEW
        self._hot = [one for one in self._hot if one is not target]
        self._hot.append(self._new(hot=True))
        return self._hot[-1]

    @contextmanager
    def writing(self, *messages: KnownMessage) -> Iterator[None]:
        """Count a write for as long as the context lasts."""
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
        """Return a message that nobody has sent, now and then one that was sent last."""
        if target.message is not None and target.last is not None and self._draw.random() < 0.12:
            return target.message, target.last
        draw, number = self._draw, self._numbers
        self._numbers += 1
        if draw.random() < 0.2:
            target.timestamp = _BEGIN + draw.randrange(10**10)
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
