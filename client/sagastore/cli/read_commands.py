"""The `get`, `list`, `search` and `ping` commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from sagastore import (
    AsyncClient,
    Consistency,
    Message,
    NotFoundError,
    Order,
    SagaStoreError,
    ServingStatus,
    UnavailableError,
)
from sagastore.cli import records
from sagastore.cli.failures import show_error
from sagastore.cli.limited_output import note, note_more, page_size, print_some
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.text import counted

__all__ = ["get", "list_session", "ping", "search"]


async def get(settings: Settings, ids: Sequence[str], consistency: Consistency | None) -> int:
    """Print messages by id."""
    async with settings.client() as client:
        result = await client.batch_get(ids, consistency=consistency)
    show = _printer(settings, records.message_line, "whole")
    for message in result.messages:
        show(message)
    for id in result.missing_ids:
        show_error(NotFoundError(f"no message has the id {id!r}", reason="MESSAGE_NOT_FOUND"))
    return ExitStatus.NOT_FOUND if result.missing_ids else ExitStatus.DONE


async def list_session(
    settings: Settings,
    session_id: str,
    *,
    newest_first: bool,
    limit: int,
    consistency: Consistency | None,
) -> int:
    """Print the messages of a session."""
    async with settings.client() as client:
        pager = client.list(
            session_id,
            newest_first=newest_first,
            page_size=page_size(limit),
            consistency=consistency,
        )
        if settings.as_json:
            show = _printer(settings, records.message_line, "whole")
        else:
            last = await _message_count(client, session_id, consistency) if newest_first else None
            show = _numbered(last)
        shown, more = await print_some(pager, limit, show)
    if not settings.as_json:
        if not shown:
            note(f"the session {session_id!r} has no messages")
        elif more:
            note(f"{shown:,} shown; there are more")
    return 0


async def _message_count(
    client: AsyncClient, session_id: str, consistency: Consistency | None
) -> int:
    """Return the place of the newest message in its session."""
    try:
        return (await client.sessions.get(session_id, consistency=consistency)).message_count
    except NotFoundError:
        return 0


def _numbered(last: int | None) -> Callable[[Message], None]:
    """Return a function that prints messages with their places: 1, 2, … or from `last` down."""
    from sagastore.cli import message_view
    from sagastore.cli.console import screen

    out = screen()
    places = count(1) if last is None else count(last, -1)
    return lambda message: message_view.in_session(out, message, next(places))


async def search(settings: Settings, query: str, *, limit: int, **conditions: Any) -> int:
    """Print the messages that match."""
    order: str = conditions.pop("order")
    async with settings.client() as client:
        pager = client.search(
            query, order=Order[order.upper()], page_size=page_size(limit), **conditions
        )
        shown, more = await print_some(pager, limit, _printer(settings, records.hit_line, "hit"))
    if not shown and not settings.as_json:
        note("no messages match")
    elif more:
        note_more(shown)
    return 0


def _printer(
    settings: Settings, as_line: Callable[[Any], str], shown: str
) -> Callable[[Any], None]:
    if settings.as_json:
        return lambda item: print_json(as_line(item))
    from sagastore.cli import message_view
    from sagastore.cli.console import screen

    out = screen()
    display = getattr(message_view, shown)
    return lambda item: display(out, item)


async def ping(settings: Settings) -> int:
    """Print the health of the server, its latency, and its number of messages."""
    async with settings.client() as client:
        await client.health()  # Connects; the time is not measured.
        began = time.perf_counter()
        status = await client.health()
        millis = (time.perf_counter() - began) * 1000
        facts = await _facts(client) if status is ServingStatus.SERVING else {}
    if status is not ServingStatus.SERVING:
        text = f"{settings.target} responds but is not serving: {status.name}"
        raise UnavailableError(text, reason=status.name)
    if settings.as_json:
        answer = {"target": settings.target, "status": status.name, "millis": round(millis, 3)}
        print_json(records.document(answer | facts))
        return 0
    from sagastore.cli.console import screen

    out = screen()
    out.line((settings.target, "bold"), " is ", ("serving", "green"), f", {millis:.1f} ms")
    if "phase" in facts:
        out.line(f"phase {facts['phase']}", indent=2)
    for store in facts.get("stores", ()):
        held = store["messages"]
        count = "" if held is None else f", {counted(held, 'message')}"
        detail = store["detail"] or ("healthy" if store["healthy"] else "not healthy")
        out.line(f"{store['store']}: {detail}{count}", indent=2)
    return 0


async def _facts(client: AsyncClient) -> dict[str, Any]:
    try:
        state = await client.migration.get()
    except SagaStoreError:
        return {}  # The caller may lack the permission.
    return {
        "phase": state.phase.label,
        "stores": [
            {
                "store": store.store.label,
                "healthy": store.healthy,
                "detail": store.detail,
                "messages": store.messages,
            }
            for store in state.stores
        ],
    }
