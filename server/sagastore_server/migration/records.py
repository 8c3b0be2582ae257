"""Records: how the verifier reads the rows of one kind (messages, sessions, files) from a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from sagastore_server.storage.files import File
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import MigrationSource, MigrationTarget
from sagastore_server.storage.sessions import RecordKind, Session

Row = Message | Session | File
ReplicatedStore = MigrationSource | MigrationTarget


class _Scan(Protocol):
    async def __call__(
        self, store: ReplicatedStore, after: str | None, upto: str, limit: int
    ) -> tuple[Sequence[Row], bool]: ...


class _Fetch(Protocol):
    async def __call__(self, store: ReplicatedStore, keys: Sequence[str]) -> dict[str, Row]: ...


class _Last(Protocol):
    async def __call__(self, store: ReplicatedStore) -> str | None: ...


class Records(NamedTuple):
    """One kind of rows, which are ordered by their key."""

    kind: RecordKind
    key: Callable[[Row], str]
    """The key of a row."""
    name: Callable[[str], str]
    """The name in reports of the row with a key."""
    last: _Last
    """Returns the greatest key; None: no rows."""
    scan: _Scan
    """Returns the rows with ``after < key <= upto``, and whether more follow; None: from the
    beginning."""
    fetch: _Fetch
    """Returns rows by key, without those that do not exist."""


def _message_key(row: Row) -> str:
    assert isinstance(row, Message)  # noqa: S101 - rows of this kind only
    return row.id


async def _last_message(store: ReplicatedStore) -> str | None:
    return await store.last_id()


async def _scan_messages(
    store: ReplicatedStore, after: str | None, upto: str, limit: int
) -> tuple[Sequence[Row], bool]:
    page = await store.scan_ids(after or "", upto, limit)
    return page.messages, page.more


async def _fetch_messages(store: ReplicatedStore, keys: Sequence[str]) -> dict[str, Row]:
    return dict(await store.batch_get(keys))


def _session_key(row: Row) -> str:
    assert isinstance(row, Session)  # noqa: S101 - rows of this kind only
    return row.session_id


async def _last_session(store: ReplicatedStore) -> str | None:
    return await store.last_session()


async def _scan_sessions(
    store: ReplicatedStore, after: str | None, upto: str, limit: int
) -> tuple[Sequence[Row], bool]:
    page = await store.scan_sessions(after, upto, limit)
    return page.sessions, page.more


async def _fetch_sessions(store: ReplicatedStore, keys: Sequence[str]) -> dict[str, Row]:
    return dict(await store.sessions_by_id(keys))


def _file_key(row: Row) -> str:
    assert isinstance(row, File)  # noqa: S101 - rows of this kind only
    return row.id


async def _last_file(store: ReplicatedStore) -> str | None:
    return await store.last_file()


async def _scan_files(
    store: ReplicatedStore, after: str | None, upto: str, limit: int
) -> tuple[Sequence[Row], bool]:
    page = await store.scan_files(after or "", upto, limit)
    return page.files, page.more


async def _fetch_files(store: ReplicatedStore, keys: Sequence[str]) -> dict[str, Row]:
    return dict(await store.files_by_id(keys))


MESSAGES = Records(
    RecordKind.MESSAGE, _message_key, str, _last_message, _scan_messages, _fetch_messages
)
SESSIONS = Records(
    RecordKind.SESSION,
    _session_key,
    "sessions/{}".format,
    _last_session,
    _scan_sessions,
    _fetch_sessions,
)
FILES = Records(
    RecordKind.FILE, _file_key, "files/{}".format, _last_file, _scan_files, _fetch_files
)
ALL = (MESSAGES, SESSIONS, FILES)
"""Every kind, in the order in which they are compared."""
