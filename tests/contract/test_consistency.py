"""Positions and requirements: every write tells a position that a following read satisfies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import pytest

from sagastore_server.interfaces.consistency import Consistency, Level, WalPosition
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import (
    FileRecordNotFoundError,
    InvalidRequestError,
    NotFoundError,
    SessionNotFoundError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.files import FileScan, NewFile
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.query import Criteria, Scan
from sagastore_server.storage.sessions import SessionCriteria, SessionScan
from tests.support.backends import Place
from tests.support.calls import as_call, at_least
from tests.support.drafts import NOW, draft, lone

FILE = NewFile("f-1", "notes.md", "/in/notes.md", "text/plain", "text", (), 17, NOW, "{}")
FOREIGN = WalPosition(1, 1, 1)

Operation = Callable[[StorageBackend], Awaitable[object]]


class Step(NamedTuple):
    """A write, and a read that must see it."""

    write: Operation
    read: Operation
    gone: type[StorageError] | None = None
    """Error of the read, if the write removes what it reads."""


async def _deleted_session(backend: StorageBackend) -> None:
    await backend.begin_session_deletion("s-1")
    while not (await backend.delete_session_step("s-1")).done:
        pass


STEPS = (
    Step(lambda b: b.save(lone("m-1")), lambda b: b.get("m-1")),
    # Repeated: nothing is stored, and the position includes what is.
    Step(lambda b: b.save(lone("m-1")), lambda b: b.get("m-1")),
    Step(lambda b: b.delete("m-1"), lambda b: b.get("m-1"), NotFoundError),
    Step(lambda b: b.bulk_save([lone("m-2")], OnConflict.REPLACE), lambda b: b.get("m-2")),
    Step(lambda b: b.append("s-1", [draft("m-3"), draft("m-4")]), lambda b: b.get("m-4")),
    Step(lambda b: b.update_session("s-1", "title"), lambda b: b.get_session("s-1")),
    Step(lambda b: b.truncate_session("s-1", drop_last=1), lambda b: b.get("m-4"), NotFoundError),
    Step(_deleted_session, lambda b: b.get_session("s-1"), SessionNotFoundError),
    Step(lambda b: b.save_file(FILE), lambda b: b.get_file("f-1")),
    Step(lambda b: b.delete_file("f-1"), lambda b: b.get_file("f-1"), FileRecordNotFoundError),
)

READS: dict[str, Operation] = {
    "get": lambda b: b.get("m-1"),
    "batch_get": lambda b: b.batch_get(["m-1", "m-2"]),
    "batch_get, nothing": lambda b: b.batch_get(["m-2"]),
    "list_session": lambda b: b.list_session("s-1", Scan(False, 5)),
    "list_session, nothing": lambda b: b.list_session("s-2", Scan(False, 5)),
    "search": lambda b: b.search(Criteria(), Scan(True, 5)),
    "scan_sequences": lambda b: b.scan_sequences(0, 1 << 62, 5),
    "last_sequence": lambda b: b.last_sequence(),
    "get_session": lambda b: b.get_session("s-1"),
    "list_sessions": lambda b: b.list_sessions(SessionCriteria(), SessionScan(False, 5)),
    "get_file": lambda b: b.get_file("f-1"),
    "list_files": lambda b: b.list_files(FileScan(5)),
}


async def test_position_of_each_write_satisfies_a_read(
    place: Place, backend: StorageBackend
) -> None:
    tells = place.kind.tells_positions
    last = FOREIGN
    for step in STEPS:
        written = await as_call(partial(step.write, backend))
        assert (written.position is not None) is tells
        if written.position is not None:
            assert last is FOREIGN or written.position >= last
            last = written.position
        wanted = at_least(last)
        if step.gone is not None:
            with pytest.raises(step.gone):
                await as_call(partial(step.read, backend), wanted)
            continue
        seen = await as_call(partial(step.read, backend), wanted)
        assert seen.position is None if not tells else seen.position >= last  # type: ignore[operator]


async def test_each_read_tells_a_position_at_every_level(
    place: Place, backend: StorageBackend
) -> None:
    await backend.save(draft("m-1"))
    await backend.save_file(FILE)
    for name, read in READS.items():
        for wanted in (None, Consistency(), Consistency(Level.ANY_REPLICA)):
            seen = await as_call(partial(read, backend), wanted)
            assert (seen.position is not None) is place.kind.tells_positions, name


async def test_positions_that_the_store_cannot_reach(place: Place, backend: StorageBackend) -> None:
    """Where the store tells no positions, it has the latest state, which satisfies each of them."""
    await backend.save(draft("m-1"))
    await backend.save_file(FILE)
    here = (await as_call(lambda: backend.get("m-1"))).position or FOREIGN
    expected = {
        here._replace(system=here.system ^ 1): InvalidRequestError,
        here._replace(lsn=here.lsn + (1 << 40)): UnavailableError,
        here._replace(timeline=here.timeline + 1, lsn=0): UnavailableError,
    }
    for read in READS.values():
        for position, error in expected.items():
            call = as_call(partial(read, backend), at_least(position))
            if place.kind.tells_positions:
                with pytest.raises(error):
                    await call
            else:
                await call
    for position, error in expected.items():
        # Nothing is found, and that may be wrong, too.
        with pytest.raises(error if place.kind.tells_positions else NotFoundError):
            await as_call(lambda: backend.get("absent"), at_least(position))
