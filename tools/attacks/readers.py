"""Attacks by callers with a token: answers that are never read, streams that do nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tools.attacks import frames
from tools.attacks.http2_connection import Connection
from tools.attacks.plan import LARGE, UNREAD_GROWTH, Attack, Pace, Size, Target

_MIB_ANSWER = 1_800_000
_REPEATED = 33
"""Messages of 1.8 MB in an answer of 60 MB; the largest answer is 64 MiB."""


async def repeated_ids(target: Target, pace: Pace) -> None:
    """BatchGet calls that name one id many times."""
    body = frames.message(frames.field(1, LARGE.encode()) * _REPEATED)
    await _unread(target, pace, "BatchGet", body)


async def unread_messages(target: Target, pace: Pace) -> None:
    """Get calls of a large message."""
    await _unread(target, pace, "Get", frames.message(frames.field(1, LARGE.encode())))


async def unread_searches(target: Target, pace: Pace) -> None:
    """Search calls that find a large message."""
    await _unread(target, pace, "Search", frames.message(frames.field(1, b"attack")))


async def unread_exports(target: Target, pace: Pace) -> None:
    """Export streams."""
    await _unread(target, pace, "Export", frames.message(b""))


async def _unread(target: Target, pace: Pace, method: str, body: bytes) -> None:
    token = target.tokens["reader"]
    async with Connection.opened(target, pace, reads=False) as connection:
        for _ in range(pace.count):
            await connection.call(frames.STORAGE + method, body, token)
        await pace.hold()


async def silent_bulk_saves(target: Target, pace: Pace) -> None:
    """BulkSave streams without a batch."""
    token = target.tokens["writer"]
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection.opened(target, pace))
        for _ in range(pace.count):
            await connection.begin(frames.STORAGE + "BulkSave", token)
        await pace.hold()


ATTACKS = (
    Attack(
        "repeated-ids",
        "BatchGet calls of a reader, each with an answer of 60 MB that is never read",
        repeated_ids,
        Size(10, 1, 2),
        Size(30, 10, 2),
        growth=UNREAD_GROWTH,
        stored=_MIB_ANSWER,
        seconds=6,
    ),
    Attack(
        "unread-messages",
        "Get calls of a reader, each with an answer of 1.8 MB that is never read",
        unread_messages,
        Size(300, 1, 2),
        Size(1000, 10, 2),
        growth=UNREAD_GROWTH,
        stored=_MIB_ANSWER,
        seconds=6,
    ),
    Attack(
        "unread-searches",
        "Search calls of a reader, each with an answer of 1.8 MB that is never read",
        unread_searches,
        Size(300, 1, 2),
        Size(1000, 10, 2),
        growth=UNREAD_GROWTH,
        stored=_MIB_ANSWER,
        seconds=6,
    ),
    Attack(
        "unread-exports",
        "Export streams of a reader that are never read",
        unread_exports,
        Size(80, 1, 2),
        Size(200, 10, 2),
        growth=UNREAD_GROWTH,
        stored=_MIB_ANSWER,
    ),
    Attack(
        "silent-bulk-saves",
        "BulkSave streams of a writer without a batch",
        silent_bulk_saves,
        Size(80, 1, 2),
        Size(200, 10, 2),
        quiet=True,
    ),
)
