"""The `save` and `delete` commands."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any

from sagastore import Durability, FileSaveResult, Message, NotFoundError, SaveResult
from sagastore.cli import records
from sagastore.cli.failures import CommandError, complain, show_error
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.commandline.exit_status import ExitStatus

__all__ = ["delete", "print_deleted", "print_result", "save", "standard_input"]


def save(
    settings: Settings,
    content: str,
    *,
    provider: str,
    role: str,
    id: str,
    tags: Sequence[str],
    timestamp: datetime | None,
    metadata: Mapping[str, Any],
    session_id: str | None,
    if_revision: int | None,
    durability: str,
) -> Coroutine[Any, Any, int]:
    """Read the content from standard input if it is `-`; return the coroutine that saves.

    Raises:
        CommandError: Standard input is not UTF-8.
    """
    message = Message(
        provider,
        role,
        standard_input() if content == "-" else content,
        id=id,
        tags=tags,
        timestamp=timestamp,
        metadata=metadata,
        session_id=session_id,
    )
    return _save(settings, message, if_revision, Durability[durability.upper()])


async def _save(
    settings: Settings, message: Message, if_revision: int | None, durability: Durability
) -> int:
    async with settings.client() as client:
        result = await client.save(message, if_revision=if_revision, durability=durability)
    print_result(settings, result)
    return 0


def standard_input() -> str:
    """Return standard input without the newline at its end."""
    if sys.stdin.isatty():
        complain("reading the content from standard input; end with Ctrl+D")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise CommandError(f"standard input is not UTF-8 text: byte {exc.start:,}") from None
    return text.removesuffix("\n").removesuffix("\r")


def print_result(settings: Settings, result: SaveResult | FileSaveResult) -> None:
    """Print the result of a save."""
    stores = sorted(store.label for store in result.durable_on)
    if settings.as_json:
        values = {
            "id": result.id,
            "revision": result.revision,
            "created": result.created,
            "durable_on": stores,
            "position": result.position,
        }
        print_json(records.document(values))
        return
    from sagastore.cli.console import screen

    kind = "created" if result.created else "not created: the id existed"
    durable = f", durable on {' and '.join(stores)}" if stores else ""
    screen().line((result.id, "bold"), f"  revision {result.revision}, {kind}{durable}")


async def delete(settings: Settings, ids: Sequence[str], *, if_revision: int | None) -> int:
    """Delete messages and report unknown ids."""
    status = ExitStatus.DONE
    async with settings.client() as client:
        for id in ids:
            try:
                await client.delete(id, if_revision=if_revision)
            except NotFoundError as exc:
                status = show_error(exc)
            else:
                print_deleted(settings, id, client.position)
    return status


def print_deleted(settings: Settings, id: str, position: str) -> None:
    """Print that an id was deleted, and for programs the position of the deletion."""
    if settings.as_json:
        print_json(records.document({"id": id, "deleted": True, "position": position}))
        return
    from sagastore.cli.console import screen

    screen().line("deleted ", (id, "bold"))
