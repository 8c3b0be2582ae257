"""Client that uses every kind of read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

from sagastore import AsyncClient, Message, Order
from tests.support.checker import Asked, Scan, WrongAnswerError
from tests.support.traffic import FOUND_WORDS, LATEST, TAGS, WORDS, Client, Traffic


class Reader(Client):
    """Uses every kind of read."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        super().__init__(traffic, f"reader-{number}")
        self._acts: list[Callable[[AsyncClient], Awaitable[None]]] = [
            self._get, self._batch_get, self._list, self._search, self._export,
        ]  # fmt: skip
        self._weights = [40, 20, 20, 25, self.settings.exports]

    async def act(self, connection: AsyncClient) -> None:
        """Perform one action."""
        (act,) = self.random.choices(self._acts, self._weights)
        await act(connection)

    def _some_id(self) -> str:
        draw = self.random
        if not self.checker.ids or draw.random() < 0.02:
            return f"unknown-{draw.randrange(1000)}"
        # Recently created messages change most often.
        ids = self.checker.ids[-200:] if draw.random() < 0.4 else self.checker.ids
        return draw.choice(ids)

    async def _get(self, connection: AsyncClient) -> None:
        await self.look(connection, self._some_id())

    async def _batch_get(self, connection: AsyncClient) -> None:
        ids = sorted({self._some_id() for _ in range(self.random.randrange(1, 80))})
        since = self.checker.now()
        found = await self.traffic.call("BatchGet", connection.batch_get(ids))
        answered = {message.id for message in found.messages} | set(found.missing_ids)
        if answered != set(ids):
            raise WrongAnswerError(f"BatchGet lacks {set(ids) - answered}")
        for message in found.messages:
            self.checker.shows(message, since)
        for id in found.missing_ids:
            self.checker.lacks(id, since)

    async def _list(self, connection: AsyncClient) -> None:
        draw = self.random
        value = self.checker.value(draw.choice(self.checker.ids)) if self.checker.ids else None
        session = value.session_id if value is not None and value.session_id else "counters"
        newest = draw.random() < 0.5
        place = _falling if newest else _rising
        scan = self.checker.scan(Asked(session_id=session), place=place)
        pager = connection.list(session, newest_first=newest, page_size=draw.choice((7, 50, 500)))
        await self._pages("List", pager.page, scan)

    async def _search(self, connection: AsyncClient) -> None:
        draw = self.random
        asked = self._question()
        order = draw.choice((Order.NEWEST, Order.OLDEST, Order.RELEVANCE))
        if not asked.words and order is Order.RELEVANCE:
            order = Order.NEWEST
        places = {Order.NEWEST: _falling, Order.OLDEST: _rising}
        scan = self.checker.scan(asked, place=places.get(order))
        query = " ".join((*asked.words, *([f"-{asked.without}"] if asked.without else [])))
        pager = connection.search(
            query,
            tags=() if asked.tag is None else (asked.tag,),
            provider=asked.provider or "",
            session_id=asked.session_id,
            order=order,
            page_size=draw.choice((0, 200, 500)),
        )
        await self._pages("Search", pager.page, scan)

    def _question(self) -> Asked:
        draw = self.random
        words = tuple(draw.sample(WORDS, draw.choice((1, 2, 2))))
        return draw.choice(
            (
                Asked(words),
                Asked((draw.choice(FOUND_WORDS), draw.choice(FOUND_WORDS))),
                Asked(words, without=draw.choice(WORDS)),
                Asked(words[:1], tag=draw.choice(TAGS)),
                Asked(words[:1], provider="google", tag=draw.choice(TAGS)),
                Asked(tag=draw.choice(TAGS)),
                Asked(words[:1], session_id="counters"),
            )
        )

    async def _pages(
        self, name: str, fetch: Callable[[str | None], Awaitable[Any]], scan: Scan
    ) -> None:
        token: str | None = None
        while token != "":
            page = await self.traffic.call(name, fetch(token))
            scan.page([getattr(item, "message", item) for item in page.items])
            token = page.next_page_token
        scan.end()

    async def _export(self, connection: AsyncClient) -> None:
        scan = self.checker.export()

        async def export() -> None:
            size = self.random.choice((50, 200, 1000))
            async with aclosing(connection.export_batches(batch_size=size)) as batches:
                async for batch in batches:
                    scan.page(batch.messages)

        await self.traffic.call("Export", export())
        scan.end()


def _rising(message: Message) -> tuple[datetime, int]:
    assert message.timestamp is not None
    return message.timestamp, message.sequence


def _falling(message: Message) -> tuple[timedelta, int]:
    assert message.timestamp is not None
    return LATEST - message.timestamp, -message.sequence
