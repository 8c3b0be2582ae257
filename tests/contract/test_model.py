"""Stateful test: every sequence of calls has the same answers as on a plain dict."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from sagastore_server.search import pager
from sagastore_server.search.pager import Order
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.canonical_json import canonical_object
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import (
    Message,
    NewMessage,
    OnConflict,
    Position,
    SaveRequest,
    SaveResult,
)
from sagastore_server.storage.query import Criteria, Scan
from tests.support import strategies
from tests.support.backends import KINDS, Kind
from tests.support.drafts import NOW
from tests.support.memory import MemoryState, MemoryStorage

T = TypeVar("T")


def _object(items: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{key}": {value}' for key, value in items.items()) + "}"


ids = st.sampled_from(["a", "a1", "B", "\u00e4", "\uffee", "\U0001f600", "m 1", "'"])
words = st.sampled_from(
    ["run", "running", "runs", "The", "café", "cafe", "foo_bar", "foo", "bar", "v1.85", "北京",
     "京", "👍", "x\u0301", "OR", "né", "Straße", "straẞe", "ﬁx", "'quoted'"]
)  # fmt: skip
contents = st.lists(words, min_size=1, max_size=6).map(" ".join)
tag = st.sampled_from(["a", "b", "A", "ä", "", " ", '"', "😀"]).map(lambda name: f"t{name}")
scalars = st.sampled_from(["1", "1.0", "-1", "true", "null", '"1"', '"x"', "[]", "{}"])
values = st.one_of(
    scalars, st.lists(scalars, max_size=3).map(lambda items: f"[{', '.join(items)}]")
)
flat = st.dictionaries(st.sampled_from("kl"), values, max_size=2)
metadata = st.one_of(
    st.just("{}"),
    flat.map(_object),
    flat.map(lambda items: f'{{"n": {_object(items)}}}'),
).map(canonical_object)
sessions = st.sampled_from([None, "", "s", "S"])
times = st.sampled_from([NOW - 1, NOW, NOW, NOW, NOW + 1, -5])
kept_times = [0, NOW - 7]
drafts = st.builds(
    NewMessage,
    ids,
    st.sampled_from(["openai", "anthropic"]),
    st.sampled_from(["user", "tool"]),
    contents,
    st.lists(tag, max_size=3).map(tuple),
    times | st.none(),
    metadata,
    sessions,
    st.none() | st.sampled_from(kept_times),
)
terms = st.one_of(
    words,
    words.map(lambda word: "-" + word),
    words.map(lambda word: word[:2] + "*"),
    words.map(lambda word: "-" + word[:2] + "*"),
    st.lists(words, min_size=1, max_size=3).map(lambda many: f'"{" ".join(many)}"'),
    st.lists(words, min_size=1, max_size=2).map(lambda many: f'-"{" ".join(many)}"'),
    st.sampled_from(["AND", "OR", "NOT", "(", ")", "-("]),
)
flat_queries = st.lists(terms, max_size=4).map(" ".join)
nested_queries = st.recursive(
    terms,
    lambda inner: st.builds(
        lambda parts, operator, form: form.format(operator.join(parts)),
        st.lists(inner, min_size=1, max_size=3),
        st.sampled_from([" ", " AND ", " OR ", " NOT "]),
        st.sampled_from(["{}", "({})", "-({})", "NOT ({})"]),
    ),
    max_leaves=6,
)
queries = st.one_of(st.just(""), flat_queries, nested_queries, st.text(max_size=8))
criteria = st.builds(
    Criteria,
    queries.map(parse_query),
    st.lists(tag, max_size=2).map(tuple),
    st.none() | st.sampled_from(["openai", "anthropic", "x"]),
    st.none() | st.sampled_from(["user", "tool"]),
    sessions,
    st.none() | times,
    st.none() | times,
    st.none() | metadata,
)
sequences = st.integers(0, 60)
"""Sequences of the model."""
positions = st.none() | st.builds(Position, times, sequences)
scans = st.builds(Scan, st.booleans(), st.integers(1, 9), positions, positions)


guards = st.sampled_from([None, None, 0, 1, 10**6])
"""Guards of a batch: 1 stands for the stored revision, and more for another one."""


def _told(outcome: SaveResult | Exception) -> object:
    """Return what is the same on every backend: revisions are not."""
    if isinstance(outcome, Exception):
        return type(outcome)
    return outcome.id, outcome.created


class Machine(RuleBasedStateMachine):
    """Calls a backend and the model in parallel."""

    kind: Kind
    backend: StorageBackend

    @initialize()
    def begin(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        place = self.kind.place(Path(self.folder.name))
        self.make = self.runner.run(self.stack.enter_async_context(place))
        self.backend = self.make()
        self.runner.run(self.backend.open())
        self.state = MemoryState()
        self.model = MemoryStorage(self.state)
        self.runner.run(self.model.open())
        self.revisions: dict[int, int] = {}
        """The model's revision to the backend's: the numbers differ, their order does not."""
        self.sequences: dict[int, int] = {0: 0}
        """The model's sequence to that of the backend."""

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.runner.run(self.backend.close())
            self.runner.run(self.stack.aclose())
            self.runner.close()
            self.folder.cleanup()

    def _both(
        self, first: Awaitable[T], second: Awaitable[T]
    ) -> tuple[T | Exception, T | Exception]:
        """Return both answers or refusals."""

        async def outcome(call: Awaitable[T]) -> T | Exception:
            try:
                return await call
            except StorageError as exc:
                return exc

        async def both() -> tuple[T | Exception, T | Exception]:
            return await outcome(first), await outcome(second)

        return self.runner.run(both())

    def _learn(self, *changed: str) -> None:
        """Compare the written messages, and copy the times that the backend assigned."""
        for key in changed:
            real, expected = self._both(self.backend.get(key), self.model.get(key))
            assert type(real) is type(expected)
            if not isinstance(real, Message) or not isinstance(expected, Message):
                continue
            revision = self.revisions.setdefault(expected.revision, real.revision)
            assert real.revision == revision
            sequence = self.sequences.setdefault(expected.sequence, real.sequence)
            assert real.sequence == sequence
            known = expected.created_at in self.learned_times
            if not known:
                assert isinstance(real.created_at, int)
                self.learned_times.add(real.created_at)
                expected = expected._replace(created_at=real.created_at)
            if expected.timestamp not in self.given_times:
                expected = expected._replace(timestamp=real.timestamp)
                self.given_times.add(real.timestamp)
            self.state.messages[key] = expected
            assert real == expected._replace(revision=revision, sequence=sequence)

    @initialize()
    def forget_times(self) -> None:
        self.learned_times: set[int | None] = set(kept_times)
        self.given_times = {NOW - 1, NOW, NOW + 1, -5}

    def _seen(self, messages: list[Message]) -> list[Message]:
        """Return the model's messages with the backend's revisions and sequences."""
        return [
            one._replace(
                revision=self.revisions[one.revision], sequence=self.sequences[one.sequence]
            )
            for one in messages
        ]

    def _sequence(self, models: int, *, newest_first: bool) -> int:
        """Return a sequence at which the backend's scan begins or stops as the model's does.

        For a sequence that no message has, it is that of the message before it in the direction
        of the scan: there may be no number between two sequences of the backend.
        """
        known = sorted(self.sequences)
        at = bisect.bisect_left(known, models)
        if at < len(known) and known[at] == models:
            return self.sequences[models]
        if newest_first:
            return self.sequences[known[at]] if at < len(known) else 2**62
        return self.sequences[known[at - 1]]

    def _scan(self, models: Scan) -> Scan:
        def position(one: Position | None) -> Position | None:
            if one is None:
                return None
            sequence = self._sequence(one.sequence, newest_first=models.newest_first)
            return Position(one.timestamp, sequence)

        return models._replace(after=position(models.after), until=position(models.until))

    def _stored_revision(self, key: str, offset: int) -> tuple[int, int]:
        message = self.state.messages.get(key)
        if message is None:
            return 1, 1
        real = self.revisions[message.revision]
        return (
            (real, message.revision) if not offset else (real + offset, message.revision + offset)
        )

    @rule(draft=drafts)
    def save(self, draft: NewMessage) -> None:
        real, expected = self._both(self.backend.save(draft), self.model.save(draft))
        assert not isinstance(real, Exception)
        assert not isinstance(expected, Exception)
        assert (real.id, real.created) == (draft.id, expected.created)
        self._learn(draft.id)

    @rule(draft=drafts)
    def save_new(self, draft: NewMessage) -> None:
        real, expected = self._both(self.backend.save(draft, 0), self.model.save(draft, 0))
        assert type(real) is type(expected)
        self._learn(draft.id)

    @rule(draft=drafts, offset=st.sampled_from([0, 0, 10**6]))
    def save_guarded(self, draft: NewMessage, offset: int) -> None:
        mine, models = self._stored_revision(draft.id, offset)
        real, expected = self._both(self.backend.save(draft, mine), self.model.save(draft, models))
        assert type(real) is type(expected)
        self._learn(draft.id)

    @rule(key=ids)
    def save_again(self, key: str) -> None:
        message = self.state.messages.get(key)
        if message is not None:
            result = self.runner.run(self.backend.save(NewMessage(*message[:8])))
            assert (result.revision, result.created) == (self.revisions[message.revision], False)

    @rule(batch=st.lists(st.tuples(drafts, guards), min_size=1, max_size=6))
    def batch_save(self, batch: list[tuple[NewMessage, int | None]]) -> None:
        mine, models = [], []
        for draft, guard in batch:
            given = (guard, guard)
            if guard is not None and guard > 0:
                given = self._stored_revision(draft.id, guard - 1)
            mine.append(SaveRequest(draft, given[0]))
            models.append(SaveRequest(draft, given[1]))
        real = self.runner.run(self.backend.batch_save(mine))
        expected = self.runner.run(self.model.batch_save(models))
        assert list(map(_told, real)) == list(map(_told, expected))
        self._learn(*dict.fromkeys(draft.id for draft, _ in batch))

    @rule(batch=st.lists(drafts, max_size=6), on_conflict=st.sampled_from(OnConflict))
    def bulk_save(self, batch: list[NewMessage], on_conflict: OnConflict) -> None:
        real, expected = self._both(
            self.backend.bulk_save(batch, on_conflict), self.model.bulk_save(batch, on_conflict)
        )
        assert real == expected
        self._learn(*dict.fromkeys(draft.id for draft in batch))

    @rule(key=ids)
    def delete(self, key: str) -> None:
        real, expected = self._both(self.backend.delete(key), self.model.delete(key))
        assert type(real) is type(expected)
        self._learn(key)

    @rule(key=ids, offset=st.sampled_from([0, 10**6]))
    def delete_guarded(self, key: str, offset: int) -> None:
        mine, models = self._stored_revision(key, offset)
        real, expected = self._both(self.backend.delete(key, mine), self.model.delete(key, models))
        assert type(real) is type(expected)
        self._learn(key)

    @rule(session=st.sampled_from(["", "s", "S", "none"]), scan=scans)
    def list_session(self, session: str, scan: Scan) -> None:
        real = self.runner.run(self.backend.list_session(session, self._scan(scan)))
        expected = self.runner.run(self.model.list_session(session, scan))
        assert real.messages == self._seen(expected.messages)
        assert real.more is expected.more

    @rule(criteria=criteria, scan=scans)
    def search(self, criteria: Criteria, scan: Scan) -> None:
        real = self.runner.run(self.backend.search(criteria, self._scan(scan)))
        expected = self.runner.run(self.model.search(criteria, scan))
        assert real.messages == self._seen(expected.messages)
        assert real.more is expected.more

    @rule(after=ids, upto=ids, limit=st.integers(1, 9))
    def scan_ids(self, after: str, upto: str, limit: int) -> None:
        real = self.runner.run(self.backend.scan_ids(after, upto, limit))
        expected = self.runner.run(self.model.scan_ids(after, upto, limit))
        assert real.messages == self._seen(expected.messages)
        assert real.more is expected.more

    @rule(after=sequences, upto=sequences, limit=st.integers(1, 9))
    def scan_sequences(self, after: int, upto: int, limit: int) -> None:
        ends = (self._sequence(one, newest_first=False) for one in (after, upto))
        scan = (*ends, limit)
        real = self.runner.run(self.backend.scan_sequences(*scan))
        expected = self.runner.run(self.model.scan_sequences(after, upto, limit))
        assert real.messages == self._seen(expected.messages)
        assert real.more is expected.more

    @rule(criteria=criteria, order=st.sampled_from(Order), size=st.integers(1, 4))
    def search_pages(self, criteria: Criteria, order: Order, size: int) -> None:
        """Page by page on the backend, in one call on the model."""
        all_hits, end = self.runner.run(pager.search_page(self.model, criteria, order, 500, None))
        assert end is None
        hits = []
        cursor = None
        while True:
            page, cursor = self.runner.run(
                pager.search_page(self.backend, criteria, order, size, cursor)
            )
            hits += page
            if cursor is None:
                break
            assert len(page) == size
        expected = [hit._replace(message=self._seen([hit.message])[0]) for hit in all_hits]
        assert hits == expected

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.backend.close())
        self.backend = self.make()
        self.runner.run(self.backend.open())

    @invariant()
    def everything_is_the_same(self) -> None:
        if hasattr(self, "backend"):
            stored = self.runner.run(self.backend.batch_get(sorted(self.state.messages)))
            expected = self._seen(list(self.state.messages.values()))
            assert stored == {message.id: message for message in expected}
            assert self.runner.run(self.backend.last_id()) == self.runner.run(self.model.last_id())
            last = self.runner.run(self.model.last_sequence())
            assert self.runner.run(self.backend.last_sequence()) == self.sequences[last]
            for numbers in (self.revisions, self.sequences):
                real = [numbers[number] for number in sorted(numbers)]
                assert real == sorted(set(real)), "they grow with every change"


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.timeout(600)
def test_backend_agrees_with_model(name: str) -> None:
    machine = type("MachineOf" + name, (Machine,), {"kind": KINDS[name]})
    few = 8 if strategies.QUICK else 500
    run_state_machine_as_test(machine, settings=settings(max_examples=few, stateful_step_count=25))
