"""The `sessions list`, `show`, `delete` and `rename` commands."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from sagastore import AbortedError, AsyncClient, Consistency, Message, Session
from sagastore._async_sessions import DELETE_TIMEOUT
from sagastore.cli import confirmation, records
from sagastore.cli.failures import CommandError
from sagastore.cli.limited_output import note, note_more, page_size, print_some
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.commandline.text import counted

__all__ = ["delete", "list_sessions", "rename", "show"]

_RENAMES = 5


async def list_sessions(settings: Settings, limit: int, **conditions: Any) -> int:
    """Print the sessions that match."""
    found: list[Session] = []

    def keep(session: Session) -> None:
        if settings.as_json:
            print_json(records.document(records.session_record(session)))
        else:
            found.append(session)

    async with settings.client() as client:
        pager = client.sessions.list(page_size=page_size(limit), **conditions)
        shown, more = await print_some(pager, limit, keep)
    if found:
        from sagastore.cli import session_view
        from sagastore.cli.console import screen

        session_view.table(screen(), found)
    elif not settings.as_json:
        note("no sessions match")
    if more:
        note_more(shown)
    return 0


async def show(
    settings: Settings, session_id: str, count: int, consistency: Consistency | None
) -> int:
    """Print a session and its last messages."""
    async with settings.client() as client:
        session = await client.sessions.get(session_id, consistency=consistency)
        messages = await _last_messages(client, session_id, count, consistency)
    if settings.as_json:
        document = records.session_record(session)
        document["messages"] = list(map(records.message_record, messages))
        print_json(records.document(document))
        return 0
    from sagastore.cli import message_view, session_view
    from sagastore.cli.console import screen

    out = screen()
    session_view.whole(out, session)
    first = max(session.message_count - len(messages), 0) + 1
    for place, message in enumerate(messages, first):
        message_view.in_session(out, message, place)
    return 0


async def _last_messages(
    client: AsyncClient, session_id: str, count: int, consistency: Consistency | None
) -> list[Message]:
    """Return the last messages of a session, oldest first."""
    pager = client.list(session_id, newest_first=True, page_size=count, consistency=consistency)
    return [message async for message in pager.limit(count)][::-1]


def delete(
    settings: Settings, session_id: str, *, if_revision: int | None, sure: bool
) -> Coroutine[Any, Any, int]:
    """Ask for confirmation if necessary; return the coroutine that deletes a session.

    Raises:
        typer.BadParameter: There is no terminal to ask on, and no `--yes`.
        CommandError: The user did not confirm.
        SagaStoreError: The session does not exist or cannot be read.
    """
    confirmation.require(sure, "deleting a session")
    if not sure:
        # On a separate event loop, because the question is asked without one.
        session = asyncio.run(_read(settings, session_id))
        messages = counted(session.message_count, "message")
        title = f" ({session.title!r})" if session.title else ""
        confirmation.ask(f"Delete the session {session_id!r}{title} with {messages}?")
    return _delete(settings, session_id, if_revision)


async def _read(settings: Settings, session_id: str) -> Session:
    async with settings.client() as client:
        return await client.sessions.get(session_id)


async def _delete(settings: Settings, session_id: str, if_revision: int | None) -> int:
    timeout = DELETE_TIMEOUT if settings.timeout is None else settings.timeout
    async with settings.client() as client:
        deleted = await client.sessions.delete(session_id, if_revision=if_revision, timeout=timeout)
    if settings.as_json:
        values = {
            "session_id": session_id,
            "deleted": True,
            "deleted_messages": deleted,
            "position": client.position,
        }
        print_json(records.document(values))
        return 0
    from sagastore.cli.console import screen
    from sagastore.commandline.sanitize import label

    screen().line("deleted ", (label(session_id), "bold"), f", {counted(deleted, 'message')}")
    return 0


async def rename(settings: Settings, session_id: str, title: str) -> int:
    """Change the title of a session that exists, and print the session."""
    async with settings.client() as client:
        session = await _renamed(client, session_id, title)
    if settings.as_json:
        document = records.session_record(session) | {"position": client.position}
        print_json(records.document(document))
        return 0
    from sagastore.cli import session_view
    from sagastore.cli.console import screen

    session_view.table(screen(), [session])
    return 0


async def _renamed(client: AsyncClient, session_id: str, title: str) -> Session:
    """Change the title; guarded, because an update creates a session that does not exist."""
    for _ in range(_RENAMES):
        session = await client.sessions.get(session_id)
        try:
            return await client.sessions.update(
                session_id, title=title, if_revision=session.revision
            )
        except AbortedError:
            continue  # The session has changed in between.
    raise CommandError(f"the session {session_id!r} changes all the time; try again")
