"""The `files list`, `show`, `save` and `delete` commands."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import typer

from sagastore import Consistency, File, NotFoundError
from sagastore.cli import records
from sagastore.cli.failures import CommandError, show_error
from sagastore.cli.limited_output import note, note_more, page_size, print_some
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.cli.write_commands import print_deleted, print_result, standard_input
from sagastore.commandline.exit_status import ExitStatus

__all__ = ["Draft", "delete", "list_files", "save", "show"]


class Draft(NamedTuple):
    """The values of a record as given; empty values are derived."""

    path: str
    name: str
    kind: str
    size: int | None
    text: str | None
    id: str
    tags: tuple[str, ...]
    uploaded_at: datetime | None
    metadata: Mapping[str, Any]


async def list_files(
    settings: Settings, tags: Sequence[str], limit: int, consistency: Consistency | None
) -> int:
    """Print the file records that have all tags."""
    found: list[File] = []

    def keep(file: File) -> None:
        if settings.as_json:
            print_json(records.document(records.file_record(file)))
        else:
            found.append(file)

    async with settings.client() as client:
        pager = client.files.list(tags, page_size=page_size(limit), consistency=consistency)
        shown, more = await print_some(pager, limit, keep)
    if found:
        from sagastore.cli import file_view
        from sagastore.cli.console import screen

        file_view.table(screen(), found)
    elif not settings.as_json:
        note("no files match" if tags else "there are no files")
    if more:
        note_more(shown)
    return 0


async def show(settings: Settings, id: str, consistency: Consistency | None) -> int:
    """Print a file record."""
    async with settings.client() as client:
        file = await client.files.get(id, consistency=consistency)
    if settings.as_json:
        print_json(records.document(records.file_record(file)))
        return 0
    from sagastore.cli import file_view
    from sagastore.cli.console import screen

    file_view.whole(screen(), file)
    return 0


async def delete(settings: Settings, ids: Sequence[str], *, if_revision: int | None) -> int:
    """Delete file records and report unknown ids."""
    status = ExitStatus.DONE
    async with settings.client() as client:
        for id in ids:
            try:
                await client.files.delete(id, if_revision=if_revision)
            except NotFoundError as exc:
                status = show_error(exc)
            else:
                print_deleted(settings, id, client.position)
    return status


def save(
    settings: Settings, draft: Draft, *, if_revision: int | None, durability: str
) -> Coroutine[Any, Any, int]:
    """Read the text and derive missing values; return the coroutine that saves.

    Raises:
        typer.BadParameter: The type is not given and cannot be derived.
        CommandError: The text is not UTF-8.
        OSError: The text cannot be read.
    """
    name = draft.name or draft.path.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    kind = draft.kind or Path(name).suffix.removeprefix(".").lower()
    if not kind:
        raise typer.BadParameter(f"{name!r} has no extension; give --type")
    file = File(
        name,
        draft.path,
        kind,
        id=draft.id,
        extracted_text=_text(draft.text),
        tags=draft.tags,
        file_size=_size(draft.path) if draft.size is None else draft.size,
        uploaded_at=draft.uploaded_at,
        metadata=draft.metadata,
    )
    return _save(settings, file, if_revision, durability)


async def _save(settings: Settings, file: File, if_revision: int | None, durability: str) -> int:
    async with settings.client() as client:
        result = await client.files.save(file, if_revision=if_revision, durability=durability)
    print_result(settings, result)
    return 0


def _text(source: str | None) -> str:
    if source is None:
        return ""
    if source == "-":
        return standard_input()
    try:
        return Path(source).read_bytes().decode()
    except UnicodeDecodeError as exc:
        raise CommandError(f"{source} is not UTF-8 text: byte {exc.start:,}") from None


def _size(path: str) -> int:
    """Return the size of a local file; 0 if there is none."""
    try:
        return Path(path).stat().st_size if Path(path).is_file() else 0
    except (OSError, ValueError):
        return 0
