"""The `get`, `list`, `search` and `ping` commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from sagastore import AsyncClient, AsyncPager, Order, SagaStoreError, ServingStatus
from sagastore.cli import records
from sagastore.cli.failures import CommandError, complain
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings

__all__ = ["get", "list_session", "ping", "search"]

T = TypeVar("T")
_PAGE = 500
_FIRST_PAGE = 50


async def get(settings: Settings, ids: Sequence[str]) -> int:
    """Print messages by id."""
    async with settings.client() as client:
        result = await client.batch_get(ids)
    show = _printer(settings, records.message_line, "whole")
    for message in result.messages:
        show(message)
    for id in result.missing_ids:
        complain(f"no message has the id {id!r}")
    return 1 if result.missing_ids else 0


async def list_session(
    settings: Settings, session_id: str, *, newest_first: bool, limit: int
) -> int:
    """Print the messages of a session."""
    async with settings.client() as client:
        pager = client.list(session_id, newest_first=newest_first, page_size=_page_size(limit))
        show = _printer(settings, records.message_line, "in_session")
        count, more = await _print_some(pager, limit, show)
    if not settings.as_json:
        if not count:
            _note(f"the session {session_id!r} has no messages")
        elif more:
            _note(f"{count:,} shown; there are more")
    return 0


async def search(settings: Settings, query: str, *, limit: int, **conditions: Any) -> int:
    """Print the messages that match."""
    order: str = conditions.pop("order")
    async with settings.client() as client:
        pager = client.search(
            query, order=Order[order.upper()], page_size=_page_size(limit), **conditions
        )
        count, more = await _print_some(pager, limit, _printer(settings, records.hit_line, "hit"))
    if not count and not settings.as_json:
        _note("no messages match")
    elif more:
        _note(f"{count:,} shown; there are more: --limit N shows N, --limit 0 all")
    return 0


def _page_size(limit: int) -> int:
    # One more than the limit, to know whether there are more.
    return min(limit + 1, _PAGE) if limit else _FIRST_PAGE


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


def _note(text: str) -> None:
    sys.stdout.flush()
    complain(text)


async def _print_some(
    items: AsyncPager[T], limit: int, show: Callable[[T], None]
) -> tuple[int, bool]:
    """Print up to `limit` items (0: all); return how many, and whether there are more."""
    count = 0
    async with aclosing(aiter(items)) as iterator:
        async for item in iterator:
            if limit and count == limit:
                return count, True
            show(item)
            count += 1
    return count, False


async def ping(settings: Settings) -> int:
    """Print the health of the server, its latency, and its number of messages."""
    async with settings.client() as client:
        await client.health()  # Connects; the time is not measured.
        began = time.perf_counter()
        status = await client.health()
        millis = (time.perf_counter() - began) * 1000
        facts = await _facts(client) if status is ServingStatus.SERVING else {}
    if status is not ServingStatus.SERVING:
        raise CommandError(f"{settings.target} responds but is not serving: {status.name}")
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
        count = "" if store["messages"] is None else f", {store['messages']:,} messages"
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
