"""Final reads: reads all data back through every kind of read at the end of a workload."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from sagastore import UnavailableError
from tools.chaos.history import History, Outcome
from tools.chaos.known_messages import TAGS, KnownMessages
from tools.chaos.recording_client import RecordingClient

TIMEOUT = 10.0
WITHIN = 60.0
"""Seconds in which the service must answer all reads."""
_WORDS = 50
"""Number of words to search for, from the latest values."""
_AT_ONCE = 4


async def settle(
    targets: str, history: History, messages: KnownMessages, numbers: Iterator[int], client: int
) -> None:
    """Read all ``messages``, as client number ``client``.

    Raises:
        UnavailableError: The data could not be read within a minute.
    """
    reader = RecordingClient(targets, history, client, timeout=TIMEOUT)
    try:
        async with asyncio.timeout(WITHIN):
            await _FinalReads(reader, history, messages, numbers).read()
    except TimeoutError:
        raise UnavailableError(
            f"not all data could be read within {WITHIN:g} s after the faults ended"
        ) from None
    finally:
        await reader.close()


class _FinalReads:
    def __init__(
        self,
        client: RecordingClient,
        history: History,
        messages: KnownMessages,
        numbers: Iterator[int],
    ) -> None:
        self._client = client
        self._history = history
        self._messages = messages
        self._numbers = numbers
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def read(self) -> None:
        ids = list(self._messages.all)
        works = [self._get(id) for id in ids if self._messages.all[id].writes]
        works += [self._batch(ids[begin : begin + 200]) for begin in range(0, len(ids), 200)]
        for order in ("NEWEST", "OLDEST"):
            works += [self._pages({"list": True, "session": session, "order": order})
                      for session in self._messages.sessions]  # fmt: skip
            works += [self._pages({"tag": tag, "order": order}) for tag in TAGS]
        works += [
            self._pages({"word": word, "order": "RELEVANCE"})
            for word in self._messages.words[-_WORDS:]
        ]
        async with asyncio.TaskGroup() as group:
            for work in [*works, self._export()]:
                group.create_task(self._one(work))

    async def _one(self, work: Awaitable[None]) -> None:
        async with self._room:
            await work

    async def _replay_command(self, attempt: Callable[[], Awaitable[bool]]) -> None:
        """Retry until there is an answer; each attempt is a separate operation."""
        while True:
            if await attempt():
                return
            await asyncio.sleep(0.2)

    async def _get(self, id: str) -> None:
        async def attempt() -> bool:
            begun = len(self._history)
            found = await self._client.get(id)
            mine = [
                one
                for one in self._history.operations[begun:]
                if one.kind == "Get" and one.args["id"] == id
            ]
            return found is not None or mine[-1].outcome is Outcome.REFUSED

        await self._replay_command(attempt)

    async def _batch(self, ids: Sequence[str]) -> None:
        await self._replay_command(lambda: self._client.batch_get(ids))

    async def _pages(self, args: dict[str, Any]) -> None:
        token: str = ""
        args |= {"scan": next(self._numbers), "size": 100}
        while True:
            page = await self._client.page(args, token)
            if page is None:
                await asyncio.sleep(0.2)
                continue
            last, token = page
            if not token:
                return
            args = args | ({"after": last} if last else {})

    async def _export(self) -> None:
        number, after, token, done = next(self._numbers), 0, "", False
        while not done:
            after, token, done = await self._client.export(
                number, after=after, token=token, size=200, batches=0
            )
            if not token and not done:
                number = next(self._numbers)
                await asyncio.sleep(0.2)
