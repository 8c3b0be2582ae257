"""Checks the answers of a service that several clients write to concurrently.

Every id has a history of values, one for each started write. An answer is correct if it shows each
id at a value between two limits: not older than what was acknowledged or returned before the call
began, and not newer than the last write started before the answer arrived. Stale reads, lost
updates, missing messages and reappearing deleted messages all violate this rule.

An id is written by one client at a time, or by several that guard their saves with ``if_revision``;
then exactly one of the competing saves succeeds. The ``timestamp`` of a message never changes, so
its position in a list changes only if it is deleted and saved again.

Messages have one order, that of their first storage (``sequence``): a message whose first save
began after that of another was acknowledged has the greater sequence, and keeps it until it is
deleted.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from sagastore import Message
from sagastore_server.search.analysis import analyze

_SHOWN = 300


class WrongAnswerError(AssertionError):
    """The service returned a wrong answer."""


class Value(NamedTuple):
    """Value that a client saved under an id."""

    provider: str
    role: str
    content: str
    tags: tuple[str, ...]
    timestamp: datetime
    metadata: str
    """JSON with sorted keys."""
    session_id: str | None

    @classmethod
    def of(cls, message: Message) -> Value:
        """Return the compared fields of a message."""
        assert message.timestamp is not None
        return cls(
            message.provider,
            message.role,
            message.content,
            message.tags,
            message.timestamp,
            json.dumps(message.metadata, sort_keys=True, default=str),
            message.session_id,
        )

    def message(self, id: str, *, keeps_time: bool = False) -> Message:
        """Return the message to save; without a time if the stored one should be kept."""
        return Message(
            self.provider,
            self.role,
            self.content,
            id=id,
            tags=self.tags,
            timestamp=None if keeps_time else self.timestamp,
            metadata=json.loads(self.metadata),
            session_id=self.session_id,
        )


class Asked(NamedTuple):
    """Conditions of a search or list; None and () match everything."""

    words: tuple[str, ...] = ()
    without: str | None = None
    tag: str | None = None
    provider: str | None = None
    session_id: str | None = None

    def holds(self, value: Value) -> bool:
        """Return whether a message meets all conditions."""
        return (
            (self.session_id is None or value.session_id == self.session_id)
            and (self.provider is None or value.provider == self.provider)
            and (self.tag is None or self.tag in value.tags)
            and all(_stem(word) in indexer(value.content) for word in self.words)
            and (self.without is None or _stem(self.without) not in indexer(value.content))
        )


@lru_cache(maxsize=1 << 16)
def indexer(content: str) -> frozenset[str]:
    """Return the search terms of a text."""
    return frozenset(analyze(content).stems)


@lru_cache(maxsize=1 << 10)
def _stem(word: str) -> str:
    return analyze(word).stems[0]


class _Version:
    """Position in a history, and the candidates for it."""

    __slots__ = ("acked", "began", "candidates", "created_at", "decided", "revision", "sequence")

    def __init__(self, candidates: list[Value | None], *, decided: bool, began: int = 0) -> None:
        self.candidates = candidates
        self.decided = decided
        """Acknowledged or observed: the single candidate is the value."""
        self.revision: int | None = None
        self.created_at: datetime | None = None
        self.sequence: int | None = None
        self.began = began
        """When the first write of it began."""
        self.acked: int | None = None
        """When it was acknowledged."""


class _History:
    """Versions of one id; None stands for no message."""

    __slots__ = ("_floors", "_ticks", "id", "versions")

    def __init__(self, id: str, value: Value | None) -> None:
        self.id = id
        self.versions = [_Version([value], decided=True)]
        # Lowest version that may be returned, and since when; both only increase.
        self._ticks, self._floors = [0], [0]

    def lowest(self, since: int) -> int:
        """Return the oldest version that a call begun at ``since`` may return."""
        return self._floors[max(0, bisect_left(self._ticks, since) - 1)]

    def possible(self, since: int) -> list[Value | None]:
        """Return all values that were possible at some moment from ``since`` to now."""
        versions = self.versions[self.lowest(since) :]
        return [value for version in versions for value in version.candidates]

    def raise_floor(self, number: int, now: int) -> None:
        if number > self._floors[-1]:
            self._ticks.append(now)
            self._floors.append(number)

    def decide(self, number: int, value: Value | None) -> None:
        version = self.versions[number]
        if version.decided and version.candidates != [value]:
            self.wrong(f"two saves succeeded with the same guard, so one update is lost: {value}")
        version.candidates, version.decided = [value], True

    def identify(
        self,
        number: int,
        revision: int,
        created_at: datetime | None = None,
        sequence: int | None = None,
    ) -> None:
        """Check the server's fields of a version against its neighbours and earlier answers."""
        version = self.versions[number]
        if version.revision not in {None, revision}:
            self.wrong(f"version {number} had revision {version.revision}, but now has {revision}")
        if version.revision is None:
            before = (one.revision for one in reversed(self.versions[:number]) if one.revision)
            after = (one.revision for one in self.versions[number + 1 :] if one.revision)
            if not next(before, 0) < revision < next(after, revision + 1):
                self.wrong(f"version {number} has revision {revision}: revisions do not increase")
        version.revision = revision
        if sequence is not None:
            self._same_place(number, sequence)
        if created_at is not None:
            self._same_birth(number, created_at)

    def _same_place(self, number: int, sequence: int) -> None:
        version = self.versions[number]
        if version.sequence not in {None, sequence}:
            self.wrong(f"sequence of version {number} has changed to {sequence}")
        version.sequence = sequence
        earlier = [one.sequence for one in self.versions[:number] if one.sequence is not None]
        if earlier and max(earlier) > sequence:
            self.wrong(f"sequence has decreased from {max(earlier)} to {sequence}")
        before = self.versions[max(0, number - 1)]
        if not number or not before.decided:
            return
        if before.candidates != [None] and before.sequence not in {None, sequence}:
            self.wrong(f"sequence has changed from {before.sequence} to {sequence}")
        if before.candidates == [None] and sequence in earlier:
            self.wrong(f"sequence {sequence} is that of before the deletion")

    def first_storage(self, sequence: int) -> _Version | None:
        """Return the version that was stored first under a sequence, if that is certain."""
        for before, version in itertools.pairwise(self.versions):
            if version.sequence == sequence:
                new = before.decided and before.candidates == [None]
                return version if new and version.decided else None
        return None

    def _same_birth(self, number: int, created_at: datetime) -> None:
        version = self.versions[number]
        if version.created_at not in {None, created_at}:
            self.wrong(f"created_at of version {number} has changed to {created_at}")
        version.created_at = created_at
        before = self.versions[max(0, number - 1)]
        lived_on = before.decided and before.candidates != [None]
        if lived_on and before.created_at not in {None, created_at}:
            self.wrong(f"created_at has changed from {before.created_at} to {created_at}")

    def wrong(self, what: str) -> NoReturn:
        first = max(0, len(self.versions) - 4)
        latest = "".join(
            f"\n  version {first + number}"
            f"{' (acknowledged or seen)' if version.decided else ' (in flight)'}: "
            f"{' or '.join(_shown(value) for value in version.candidates)}"
            for number, version in enumerate(self.versions[first:])
        )
        raise WrongAnswerError(f"{self.id}: {what}\nits latest versions:{latest}")


class Checker:
    """Records the writes of all clients and decides whether an answer is correct."""

    def __init__(self) -> None:
        """Start with an empty service."""
        self._histories: dict[str, _History] = {}
        self._index: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._tracked: frozenset[str] = frozenset()
        self._clock = itertools.count(1)
        self.ids: list[str] = []
        """Every known id, in the order of the first writes."""
        self.answers = 0
        """Number of checked messages and absences."""

    def track(self, words: Iterable[str]) -> None:
        """Register the words of later searches, before the first write."""
        self._tracked = frozenset(map(_stem, words))

    def now(self) -> int:
        """Return a moment greater than all returned before."""
        return next(self._clock)

    # ------------------------------------------------------------------ writes

    def known(self, message: Message) -> None:
        """Register an initial message."""
        value = Value.of(message)
        history = self._add(message.id, value)
        self._look_up(message.id, value)
        history.identify(0, message.revision, message.created_at, message.sequence)

    def attempt(self, id: str, value: Value | None, number: int | None = None) -> int:
        """Record the start of a write; return the number of its version.

        ``number`` specifies it where several clients compete for the same version.
        """
        history = self._histories.get(id) or self._add(id, None)
        if number is None:
            number = len(history.versions)
        if number == len(history.versions):
            history.versions.append(_Version([value], decided=False, began=self.now()))
        elif not history.versions[number].decided:
            history.versions[number].candidates.append(value)
        if value is not None:
            self._look_up(id, value)
        return number

    def acknowledge(
        self, id: str, number: int, value: Value | None, revision: int | None = None
    ) -> None:
        """Record the acknowledgement of a write; ``revision`` is that of the answer."""
        history = self._histories[id]
        history.decide(number, value)
        now = self.now()
        history.raise_floor(number, now)
        if history.versions[number].acked is None:
            history.versions[number].acked = now
        if revision is not None:
            history.identify(number, revision)

    def refuse(self, id: str, number: int, value: Value, *, may_have_happened: bool) -> None:
        """Record the refusal of a guarded save: another client must have won.

        ``may_have_happened``: the refusal may be that of a second attempt.
        """
        history = self._histories[id]
        version = history.versions[number]
        if version.decided:
            if version.candidates == [value] and not may_have_happened:
                history.wrong("a refused save took effect")
            return
        version.candidates.remove(value)
        if not version.candidates:
            history.wrong("a guarded save was refused without a competing save")

    def value(self, id: str) -> Value | None:
        """Return the value of the latest write, finished or not."""
        return self._histories[id].versions[-1].candidates[-1]

    def knows(self, id: str) -> bool:
        """Return whether an id was ever written."""
        return id in self._histories

    def last_value(self, id: str) -> Value | None:
        """Return the latest value that is not an absence, current or not."""
        values = (version.candidates[-1] for version in reversed(self._histories[id].versions))
        return next((value for value in values if value is not None), None)

    def revision(self, id: str) -> int | None:
        """Return the revision of the latest version if known."""
        return self._histories[id].versions[-1].revision

    def versions(self, id: str) -> int:
        """Return the number of versions of an id, including its initial absence."""
        return len(self._histories[id].versions)

    def _add(self, id: str, value: Value | None) -> _History:
        history = self._histories[id] = _History(id, value)
        self.ids.append(id)
        return history

    def _look_up(self, id: str, value: Value) -> None:
        self._index["provider", value.provider].add(id)
        if value.session_id is not None:
            self._index["session", value.session_id].add(id)
        for tag in value.tags:
            self._index["tag", tag].add(id)
        for word in self._tracked & indexer(value.content):
            self._index["word", word].add(id)

    # ------------------------------------------------------------------ answers

    def shows(self, message: Message, since: int) -> None:
        """Check a message in the answer to a call that began at ``since``."""
        history = self._histories.get(message.id)
        if history is None:
            raise WrongAnswerError(f"no client ever wrote {message}")
        number = self._seen(history, Value.of(message), since)
        if number is not None:
            history.identify(number, message.revision, message.created_at, message.sequence)

    def in_order(self, messages: Iterable[Message]) -> None:
        """Check the sequences of messages against the order of their first storage."""
        ordered = sorted(messages, key=lambda one: one.sequence)
        first_acked, of = float("inf"), ""
        for message in reversed(ordered):
            stored = self._histories[message.id].first_storage(message.sequence)
            if stored is None:
                continue
            if stored.began > first_acked:
                raise WrongAnswerError(
                    f"{message.id} has a lower sequence than {of}, which was stored before it"
                )
            if stored.acked is not None and stored.acked < first_acked:
                first_acked, of = stored.acked, message.id

    def lacks(self, id: str, since: int) -> None:
        """Check that an answer may lack a message with the id."""
        history = self._histories.get(id)
        if history is not None:
            self._seen(history, None, since)

    def _seen(self, history: _History, value: Value | None, since: int) -> int | None:
        """Return the observed version; None if it may be one of several."""
        self.answers += 1
        lowest = history.lowest(since)
        matching = [
            number
            for number, version in enumerate(history.versions[lowest:], lowest)
            if value in version.candidates
        ]
        if not matching:
            earlier = [
                number
                for number, version in enumerate(history.versions[:lowest])
                if value in version.candidates
            ]
            what = (
                f"version {earlier[-1]}, which is outdated"
                if earlier
                else "a value that was never written"
            )
            history.wrong(f"shown as {what}: {_shown(value)}; expected version {lowest} or later")
        history.raise_floor(matching[0], self.now())
        if len(matching) > 1:
            return None
        history.decide(matching[0], value)
        return matching[0]

    def scan(self, asked: Asked, *, place: Callable[[Message], Any] | None) -> Scan:
        """Start checking an answer in pages.

        ``place`` is the ascending sort key; None: sorted by relevance, so that a message that
        changes meanwhile may be returned twice or not at all.
        """
        return Scan(self, asked, place, streamed=False)

    def export(self) -> Scan:
        """Start checking an export, which is sorted by sequence and read ahead."""
        return Scan(self, Asked(), lambda message: message.sequence, streamed=True)

    def expected(self, asked: Asked, since: int) -> list[str]:
        """Return the ids that an answer to a call begun at ``since`` must contain."""
        keys = [("word", _stem(word)) for word in asked.words]
        named = (("tag", asked.tag), ("provider", asked.provider), ("session", asked.session_id))
        keys += [(name, value) for name, value in named if value is not None]
        groups = [self._index[key] for key in keys]
        candidates: Iterable[str] = set.intersection(*groups) if groups else self._histories
        return [
            id
            for id in candidates
            if all(
                value is not None and asked.holds(value)
                for value in self._histories[id].possible(since)
            )
        ]

    def is_still(self, id: str, since: int) -> bool:
        """Return whether an id cannot have changed from ``since`` to now."""
        return len(self._histories[id].possible(since)) == 1

    # ------------------------------------------------------------------ final state

    def changed_since(self, moment: dict[str, int]) -> set[str]:
        """Return the ids with a write in progress at, or after, a ``moment`` (see there)."""
        return {id for id in self.ids if self.versions(id) != moment.get(id)}

    def moment(self) -> dict[str, int]:
        """Return the number of versions of each id without a write in progress."""
        return {
            id: len(history.versions)
            for id, history in self._histories.items()
            if history.versions[-1].decided
        }

    def settled(self) -> dict[str, Value]:
        """Return the exact stored values while no client writes."""
        stored: dict[str, Value] = {}
        for id, history in self._histories.items():
            if not history.versions[-1].decided:
                history.wrong("a write is still in progress")
            value = history.versions[-1].candidates[0]
            if value is not None:
                stored[id] = value
        return stored


class Scan:
    """Checks the answer to one list, search or export, page by page."""

    def __init__(
        self,
        checker: Checker,
        asked: Asked,
        place: Callable[[Message], Any] | None,
        *,
        streamed: bool,
    ) -> None:
        self._checker = checker
        self._asked = asked
        self._place = place
        self._streamed = streamed
        self._since = self._page_since = checker.now()
        self._found: list[Message] = []

    def page(self, messages: Iterable[Message]) -> None:
        """Check a page; unless streamed, the next one is requested afterwards."""
        for message in messages:
            self._checker.shows(message, self._page_since)
            if not self._asked.holds(Value.of(message)):
                raise WrongAnswerError(f"{self._asked} does not match {message}")
            self._found.append(message)
        if not self._streamed:
            self._page_since = self._checker.now()

    def end(self) -> None:
        """Check that no message is missing, duplicated or out of order."""
        ids = [message.id for message in self._found]
        if self._place is not None:
            places = [self._place(message) for message in self._found]
            if any(not before < after for before, after in itertools.pairwise(places)):
                raise WrongAnswerError(f"{self._asked}: out of order or duplicated: {ids}")
        self._checker.in_order(self._found)
        missing = set(self._checker.expected(self._asked, self._since)) - set(ids)
        if self._place is None:
            missing = {id for id in missing if self._checker.is_still(id, self._since)}
        if missing:
            raise WrongAnswerError(
                f"{self._asked}: {len(missing)} of {len(ids) + len(missing)} messages are "
                f"missing, among them {sorted(missing)[:5]}"
            )


def _shown(value: Value | None) -> str:
    return "no message" if value is None else str(value)[:_SHOWN]
