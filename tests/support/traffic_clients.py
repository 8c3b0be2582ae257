"""Runs writers and readers against a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.checker import Checker
from tests.support.traffic import Settings, Traffic
from tests.support.traffic_reader import Reader
from tests.support.traffic_writer import Writer


@asynccontextmanager
async def traffic(checker: Checker, address: str, settings: Settings) -> AsyncIterator[Traffic]:
    """Run clients against ``address`` for the duration of the context, or until `Traffic.stop`.

    The initial messages are distributed among the writers over the whole range of ids.

    Raises:
        CallFailedError: A call failed unexpectedly.
        WrongAnswerError: An answer was wrong.
    """
    running = Traffic(checker, address, settings)
    writers = [Writer(running, number) for number in range(settings.writers)]
    for number, id in enumerate(checker.ids):
        writers[number % len(writers)].ids.append(id)
    readers = [Reader(running, number) for number in range(settings.readers)]
    running.start([*writers, *readers])
    try:
        yield running
        await running.stop()
    finally:
        await running.abandon()
