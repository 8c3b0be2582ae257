"""What the simulated clients do with sessions, and what the answers must show.

A session that a read shows must be at least as new as every acknowledged change of it that the
client knew when the read began: the revision of a session is greater than that of every message
in it. Each client also has its own session, whose title it counts up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagastore_server.storage.errors import (
    RevisionMismatchError,
    SessionExistsError,
    SessionNotFoundError,
)
from sagastore_server.storage.sessions import AppendResult, Session, SessionCriteria, SessionScan
from tests.support.checker import WrongAnswerError

if TYPE_CHECKING:
    from tests.simulation.clients import Client
    from tests.simulation.world import World

TURN = 3
"""Messages of an append at most."""


class SessionFloors:
    """What reads of sessions must show at least."""

    def __init__(self) -> None:
        """Begin without acknowledged changes."""
        self._revisions: dict[str, int] = {}
        self._changes: dict[str, list[int]] = {}
        """Revisions of the acknowledged changes of each session."""
        self._guarded: dict[str, list[tuple[int, int]]] = {}
        """For each guarded turn its guard and the revision of its first message."""
        self.attempted: dict[str, int] = {}
        """The last title that was sent for a client's own session."""
        self.acknowledged: dict[str, int] = {}
        """The last title that was acknowledged."""

    def note(self, session_id: str | None, revision: int) -> None:
        """Note the revision of an acknowledged change of a session."""
        if session_id is not None:
            self._revisions[session_id] = max(self.floor(session_id), revision)
            self._changes.setdefault(session_id, []).append(revision)
            for guard, first in self._guarded.get(session_id, []):
                self._check_guard(session_id, guard, first, revision)

    def note_guarded(self, session_id: str, guard: int, first: int) -> None:
        """Note an acknowledged turn: no other change lies between its guard and its message.

        Raises:
            WrongAnswerError: One does.

        """
        self._guarded.setdefault(session_id, []).append((guard, first))
        for revision in self._changes.get(session_id, []):
            self._check_guard(session_id, guard, first, revision)

    @staticmethod
    def _check_guard(session_id: str, guard: int, first: int, revision: int) -> None:
        if guard < revision < first:
            raise WrongAnswerError(
                f"a turn of {session_id} was guarded by {guard} and stored at {first}, but the "
                f"change {revision} came between"
            )

    def floor(self, session_id: str) -> int:
        """Return the least revision that a read may show, if it begins now."""
        return self._revisions.get(session_id, 0)

    def all(self) -> dict[str, int]:
        """Return the floors of all sessions, now."""
        return dict(self._revisions)

    def check(self, session: Session, floor: int) -> None:
        """Check a session against the floor at the beginning of the read.

        Raises:
            WrongAnswerError: It is older.

        """
        if session.revision < floor:
            raise WrongAnswerError(
                f"session {session.session_id} is at {session.revision}, but the change {floor} "
                "was acknowledged before"
            )
        if session.message_count < 0 or (session.message_count > 0) is (session.last_time is None):
            raise WrongAnswerError(f"the values of a session contradict each other: {session}")


async def append(client: Client, ids: list[str], session_id: str) -> None:
    """Store new messages as one turn, sometimes guarded by the revision of the session."""
    world, checker = client._world, client._checker
    guard = await revision_of(client, session_id) if client._draw.random() < 0.5 else None
    values = {id: client.value_in(session_id) for id in ids}
    numbers = {id: checker.attempt(id, value) for id, value in values.items()}
    drafts = client.drafts(values)
    what = f"append {' '.join(ids)} to {session_id} if {guard}"
    if guard is None:
        result, _ = await client.until_answered(
            what, lambda live: live.backend.append(session_id, drafts)
        )
    else:
        try:
            result = await client._call(
                what, lambda live: live.backend.append(session_id, drafts, guard), write=True
            )
        except (SessionExistsError, RevisionMismatchError):
            # None of it was stored: from now on the ids are absent.
            for id in ids:
                checker.acknowledge(id, checker.attempt(id, None), None)
            return
    assert isinstance(result, AppendResult)
    if guard:
        world.sessions.note_guarded(session_id, guard, result.saved[0].revision)
    elif guard == 0 and result.session.message_count != len(ids):
        # Earlier changes say nothing: a session ends with its last message.
        raise WrongAnswerError(f"{what}: the session existed before: {result.session}")
    world.sessions.note(session_id, result.revision)
    sequences = [one.sequence for one in result.saved]
    if sequences != sorted(sequences):
        raise WrongAnswerError(f"{what}: the sequences {sequences} are not in order")
    for one in result.saved:
        checker.acknowledge(one.id, numbers[one.id], values[one.id], one.revision)
    world.counts["acknowledged"] += len(values)
    world.counts["turns"] += 1


async def revision_of(client: Client, session_id: str) -> int:
    """Read a session and return its revision; 0: it does not exist."""
    world = client._world
    floor = world.sessions.floor(session_id)
    try:
        found: Session = await client._call(
            f"get session {session_id}", lambda live: live.backend.get_session(session_id)
        )
    except SessionNotFoundError:
        return 0
    world.sessions.check(found, floor)
    return found.revision


async def list_sessions(client: Client) -> None:
    """List all sessions."""
    floors = client._world.sessions
    before = floors.all()
    page = await client._call(
        "list sessions",
        lambda live: live.backend.list_sessions(SessionCriteria(), SessionScan(False, 100)),
    )
    for session in page.sessions:
        floors.check(session, before.get(session.session_id, 0))


async def rename(client: Client) -> None:
    """Count up the title of the client's own session, or check it."""
    floors, session_id = client._world.sessions, f"of-{client.name}"
    if client._draw.random() < 0.5:
        number = floors.attempted.get(session_id, 0) + 1
        floors.attempted[session_id] = number
        result, _ = await client.until_answered(
            f"rename {session_id} to {number}",
            lambda live: live.backend.update_session(session_id, title=str(number)),
        )
        floors.note(session_id, result.revision)
        floors.acknowledged[session_id] = number
        return
    floor, least = floors.floor(session_id), floors.acknowledged.get(session_id, 0)
    try:
        found = await client._call(
            f"get session {session_id}", lambda live: live.backend.get_session(session_id)
        )
    except SessionNotFoundError:
        if least:
            raise WrongAnswerError(f"{session_id} was created, but does not exist") from None
        return
    floors.check(found, floor)
    if not least <= int(found.title) <= floors.attempted[session_id]:
        raise WrongAnswerError(f"{session_id} has the title {found.title}, not {least} or later")


def wrong_sessions(world: World) -> list[str]:
    """Return the sessions of the file whose values do not follow from its messages."""
    found = []
    for key, session in world.disk.sessions.items():
        messages = [one for one in world.disk.messages.values() if one.session_id == key]
        count, last = len(messages), max((one.timestamp for one in messages), default=None)
        if (session.message_count, session.last_time) != (count, last):
            found.append(f"session {key} has {session}, but {count} messages until {last}")
    return found
