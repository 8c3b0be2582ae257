"""Turns: several clients append to the same few sessions, guarded, during all faults.

Each turn is a pair of messages with the time of all others, so only its sequence orders it. A
client reads the revision of a session, appends a turn under that guard, and reads again. These
promises are checked against what the clients know, without a history:

* a session that is read is at least as new as every change that was acknowledged before;
* an acknowledged turn is there, whole and uninterrupted, and acknowledged turns of a session are in
  the order of their acknowledgements;
* a turn that was refused is not there; one of unknown outcome is there wholly or not at all;
* the count of a session is the number of its messages.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Message,
    NotFoundError,
    RetryPolicy,
    SagaStoreError,
    Session,
    UnavailableError,
)
from tools.chaos.values import moment

PREFIX = "turn-"
"""Beginning of the ids of messages and sessions; the recorded clients leave them alone."""

SESSIONS = tuple(f"{PREFIX}{number}" for number in range(5))
WRITERS = 4
TIMEOUT = 1.0
REST = 0.15
"""Average seconds between two turns of a client."""

_ONCE = RetryPolicy(max_attempts=1)
"""So that the outcome of a refused turn is certain."""

WITHIN = 60.0
"""Seconds in which the sessions must be readable at the end."""


class _Turn(NamedTuple):
    """A turn that was sent."""

    ids: tuple[str, str]
    floor: int
    """The session's revision that guarded it."""
    revision: int
    """The session's revision after it; 0: of unknown outcome, -1: refused."""


class Turns:
    """Writes turns until it is stopped, and judges the sessions at the end."""

    def __init__(self, targets: str, seed: int, wrong: Callable[[str], object]) -> None:
        """Write to the servers at ``targets``; ``wrong`` is called for each broken promise."""
        self._targets = targets
        self._seed = seed
        self._wrong = wrong
        self._turns: dict[str, list[_Turn]] = {name: [] for name in SESSIONS}
        self._floors = dict.fromkeys(SESSIONS, 0)
        """The greatest acknowledged revision of each session."""

    @property
    def acknowledged(self) -> int:
        """Number of acknowledged turns."""
        return sum(turn.revision > 0 for turns in self._turns.values() for turn in turns)

    async def run(self, stop: asyncio.Event) -> None:
        """Write turns until ``stop`` is set."""
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(number, stop), name=f"turns {number}")

    async def _write(self, number: int, stop: asyncio.Event) -> None:
        draw = random.Random(f"{self._seed}/turns {number}")
        async with AsyncClient(self._targets, retry=_ONCE, timeout=TIMEOUT) as client:
            turn = 0
            while not stop.is_set():
                turn += 1
                name = draw.choice(SESSIONS)
                try:
                    guard = await self._revision(client, name)
                    await self._append(client, name, guard, f"{PREFIX}{number}-{turn}")
                except SagaStoreError:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(draw.uniform(0, 2 * REST))

    async def _revision(self, client: AsyncClient, name: str) -> int:
        floor = self._floors[name]
        try:
            found = await client.sessions.get(name)
        except NotFoundError:
            if floor:
                self._wrong(f"SESSIONS: {name} is not found, but it was at {floor}")
            return 0
        self._check_floor(found, floor)
        return found.revision

    def _check_floor(self, found: Session, floor: int) -> None:
        if found.revision < floor:
            self._wrong(
                f"SESSIONS: {found.session_id} is read at {found.revision}, but {floor} was "
                "acknowledged before"
            )

    async def _append(self, client: AsyncClient, name: str, guard: int, head: str) -> None:
        ids = (f"{head}-0", f"{head}-1")
        messages = [
            Message("openai", "user", f"turn {id}", id=id, timestamp=moment(0)) for id in ids
        ]
        try:
            result = await client.sessions.append(name, messages, if_revision=guard)
        except (AbortedError, AlreadyExistsError):
            self._turns[name].append(_Turn(ids, guard, -1))
        except UnavailableError as exc:
            self._turns[name].append(_Turn(ids, guard, -1 if exc.unsent else 0))
            raise
        except SagaStoreError:
            self._turns[name].append(_Turn(ids, guard, 0))
            raise
        else:
            revision = result.session.revision
            self._turns[name].append(_Turn(ids, guard, revision))
            self._floors[name] = max(self._floors[name], revision)

    # ------------------------------------------------------------------ the end

    async def settle(self) -> None:
        """Read the sessions, once all faults have ended, and judge them.

        Raises:
            TimeoutError: They could not be read.

        """
        async with (
            asyncio.timeout(WITHIN),
            AsyncClient(self._targets, timeout=WITHIN) as client,
        ):
            for name in SESSIONS:
                listed = [message.id async for message in client.list(name)]
                await self._judge(client, name, listed)

    async def _judge(self, client: AsyncClient, name: str, listed: list[str]) -> None:
        try:
            found = await client.sessions.get(name)
        except NotFoundError:
            count = 0
        else:
            count = found.message_count
            self._check_floor(found, self._floors[name])
        if count != len(listed):
            self._wrong(f"SESSIONS: {name} counts {count} messages, but lists {len(listed)}")
        place = {id: at for at, id in enumerate(listed)}
        for turn in self._turns[name]:
            there = [place[id] for id in turn.ids if id in place]
            if len(there) == 1 or (len(there) == 2 and there[1] != there[0] + 1):
                self._wrong(f"SESSIONS: the turn {turn.ids} of {name} is at {there}")
            elif turn.revision > 0 and not there:
                self._wrong(f"SESSIONS: the acknowledged turn {turn.ids} of {name} is lost")
            elif turn.revision < 0 and there:
                self._wrong(f"SESSIONS: the refused turn {turn.ids} of {name} was stored")
        self._judge_order(name, place)

    def _judge_order(self, name: str, place: dict[str, int]) -> None:
        """Judge the acknowledged turns of a session, whose messages are at ``place``."""
        known = [turn for turn in self._turns[name] if turn.revision > 0]
        for turn in known:
            between = [one.ids for one in known if turn.floor < one.revision < turn.revision]
            if between:
                self._wrong(
                    f"SESSIONS: the turn {turn.ids} of {name} was guarded by {turn.floor}, but "
                    f"{between[0]} came between"
                )
        known.sort(key=lambda turn: turn.revision)
        order = [place.get(turn.ids[0], -1) for turn in known]
        if order != sorted(order):
            self._wrong(f"SESSIONS: the turns of {name} are not in the order of acknowledgement")
