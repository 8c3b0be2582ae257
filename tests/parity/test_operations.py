"""Differential test: the same random operations on both backends have equal answers.

``tests/contract/test_model.py`` compares each backend with a model; this test compares them with
each other, and therefore also covers what the model leaves open.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import (
    Message,
    NewMessage,
    OnConflict,
    Page,
    Position,
    SaveResult,
)
from sagastore_server.storage.query import Criteria, Hit, Scan
from tests.contract.test_model import criteria, drafts, ids, scans, sequences
from tests.support import strategies
from tests.support.backends import KINDS, opened
from tests.support.drafts import NOW

Call = Callable[[StorageBackend], Awaitable[Any]]

# A draft without a time gets the clock's, which is not the same twice.
timed = drafts.map(lambda one: one if one.timestamp is not None else one._replace(timestamp=NOW))


class Both(RuleBasedStateMachine):
    """Calls both backends, one after the other."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.revisions: dict[int, int] = {}
        """PostgreSQL's revision to SQLite's: the numbers differ, their order does not."""
        self.sequences: dict[int, int] = {0: 0}
        """PostgreSQL's sequence to that of SQLite."""
        self.backends = self.runner.run(self._open(Path(folder)))

    async def _open(self, folder: Path) -> list[StorageBackend]:
        makes = [
            await self.stack.enter_async_context(KINDS[name].place(folder))
            for name in ("sqlite", "postgresql")
        ]
        return [await self.stack.enter_async_context(opened(make)) for make in makes]

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.runner.run(self.stack.aclose())
            self.runner.close()

    def _both(self, call: Call) -> tuple[Any, Any]:
        left, right = (self.runner.run(_outcome(call, backend)) for backend in self.backends)
        return left, right

    def _same(self, call: Call) -> Any:
        """Compare the answers to a call, or the refusals; return SQLite's."""
        left, right = self._both(call)
        assert _bare(left) == _bare(right, self.revisions, self.sequences)
        return left

    def _write(self, call: Call, *keys: str) -> None:
        """Like ``_same``, for a call that may assign new revisions to ``keys``."""
        left, right = self._both(call)
        mine, others = self._both(lambda backend: backend.batch_get(list(keys)))
        assert mine.keys() == others.keys()
        for key, message in others.items():
            known = self.revisions.setdefault(message.revision, mine[key].revision)
            assert known == mine[key].revision
            known = self.sequences.setdefault(message.sequence, mine[key].sequence)
            assert known == mine[key].sequence
        assert _bare(left) == _bare(right, self.revisions, self.sequences)

    @rule(draft=timed, guard=st.sampled_from([None, None, 0]))
    def save(self, draft: NewMessage, guard: int | None) -> None:
        self._write(lambda backend: backend.save(draft, guard), draft.id)

    @rule(draft=timed, current=st.booleans())
    def save_guarded(self, draft: NewMessage, current: bool) -> None:
        async def call(backend: StorageBackend) -> SaveResult:
            stored = (await backend.batch_get([draft.id])).get(draft.id)
            revision = stored.revision if stored else 1
            return await backend.save(draft, revision if current else revision + 10**6)

        self._write(call, draft.id)

    @rule(batch=st.lists(timed, max_size=8), on_conflict=st.sampled_from(OnConflict))
    def bulk_save(self, batch: list[NewMessage], on_conflict: OnConflict) -> None:
        keys = [draft.id for draft in batch]
        self._write(lambda backend: backend.bulk_save(batch, on_conflict), *keys)

    @rule(key=ids)
    def delete(self, key: str) -> None:
        self._write(lambda backend: backend.delete(key), key)

    @rule(key=ids)
    def get(self, key: str) -> None:
        self._same(lambda backend: backend.get(key))

    @rule(session=st.sampled_from(["", "s", "S"]), scan=scans)
    def list_session(self, session: str, scan: Scan) -> None:
        self._same(lambda backend: backend.list_session(session, self._scan(backend, scan)))

    @rule(criteria=criteria, scan=scans)
    def search(self, criteria: Criteria, scan: Scan) -> None:
        self._same(lambda backend: backend.search(criteria, self._scan(backend, scan)))

    @rule(criteria=criteria, order=st.sampled_from(pager.Order), size=st.integers(1, 5))
    def pages(self, criteria: Criteria, order: pager.Order, size: int) -> None:
        """Page by page, each with its own cursors, since those hold sequences."""
        cursors: list[pager.Cursor | None] = [None, None]
        for _ in range(50):

            async def page(backend: StorageBackend) -> tuple[list[Hit], bool]:
                at = self.backends.index(backend)
                hits, cursors[at] = await pager.search_page(
                    backend, criteria, order, size, cursors[at]
                )
                return hits, cursors[at] is None

            _, at_the_end = self._same(page)
            if at_the_end:
                return

    @rule(after=ids, upto=ids, limit=st.integers(1, 9))
    def scan_ids(self, after: str, upto: str, limit: int) -> None:
        self._same(lambda backend: backend.scan_ids(after, upto, limit))

    @rule(after=sequences, upto=sequences, limit=st.integers(1, 9))
    def scan_sequences(self, after: int, upto: int, limit: int) -> None:
        def scan(backend: StorageBackend) -> Awaitable[Page]:
            first, last = (self._sequence(backend, end) for end in (after, upto))
            return backend.scan_sequences(first, last, limit)

        self._same(scan)

    @rule()
    def last_sequence(self) -> None:
        left, right = self._both(lambda backend: backend.last_sequence())
        assert self.sequences[right] == left

    def _scan(self, backend: StorageBackend, scan: Scan) -> Scan:
        def position(one: Position | None) -> Position | None:
            return one and Position(one.timestamp, self._sequence(backend, one.sequence))

        return scan._replace(after=position(scan.after), until=position(scan.until))

    def _sequence(self, backend: StorageBackend, number: int) -> int:
        """Return the sequence of the message that was stored as the ``number``-th one."""
        known = sorted(self.sequences)
        other = known[number % len(known)]
        return self.sequences[other] if backend is self.backends[0] else other

    @invariant()
    def revisions_and_sequences_have_one_order(self) -> None:
        if hasattr(self, "revisions"):
            for numbers in (self.revisions, self.sequences):
                ordered = [numbers[other] for other in sorted(numbers)]
                assert ordered == sorted(set(ordered))


async def _outcome(call: Call, backend: StorageBackend) -> Any:
    try:
        return await call(backend)
    except StorageError as exc:
        return exc


def _bare(
    answer: Any,
    revisions: Mapping[int, int] = MappingProxyType({}),
    sequences: Mapping[int, int] = MappingProxyType({}),
) -> Any:
    """Remove values that are specific to a store from an answer."""
    if isinstance(answer, Message):
        revision = revisions.get(answer.revision, answer.revision)
        sequence = sequences.get(answer.sequence, answer.sequence)
        return answer._replace(created_at=None, revision=revision, sequence=sequence)
    if isinstance(answer, SaveResult):
        revision = revisions.get(answer.revision, answer.revision)
        return answer._replace(durable_on=(), revision=revision)
    if isinstance(answer, Hit):
        return answer._replace(message=_bare(answer.message, revisions, sequences))
    if isinstance(answer, Exception):
        return type(answer)
    if isinstance(answer, list | tuple):
        return [_bare(item, revisions, sequences) for item in answer]
    return answer


@pytest.mark.timeout(600)
def test_both_stores_give_equal_answers() -> None:
    few = 10 if strategies.QUICK else 500
    run_state_machine_as_test(Both, settings=settings(max_examples=few, stateful_step_count=30))
