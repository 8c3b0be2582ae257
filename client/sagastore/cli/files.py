"""The `sagastore files` commands and their options."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from sagastore.cli.common_options import Job, command, group
from sagastore.cli.option_values import Durability, json_object, point_in_time
from sagastore.cli.shared_options import (
    ConsistencyOption,
    DeleteGuard,
    DurabilityOption,
    Limit,
    SaveGuard,
)

__all__ = ["files"]

files = group(
    "files",
    "List, show, save and delete records about files. The bytes of a file are not stored.",
)


@command(
    files,
    name="list",
    no_args_is_help=False,
    epilog="""Examples:

    sagastore files list

    sagastore files list --tag contract --limit 0 --json
""",
)
def list_(
    ctx: typer.Context,
    *,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", help="Has this tag; repeat for several tags."),
    ] = None,
    limit: Limit = 20,
    consistency: ConsistencyOption = None,
) -> Job:
    """List file records, the most recently uploaded first."""
    from sagastore.cli import file_commands

    return file_commands.list_files(ctx.obj, tag or (), limit, consistency)


@command(
    files,
    epilog="""Examples:

    sagastore files show 07d0ab1a-0b06-5033-92dd-f0a0b699ce7f

    sagastore files show 07d0ab1a-0b06-5033-92dd-f0a0b699ce7f --json
""",
)
def show(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the record.")],
    *,
    consistency: ConsistencyOption = None,
) -> Job:
    """Show all fields of a file record, and the text of the file."""
    from sagastore.cli import file_commands

    return file_commands.show(ctx.obj, id, consistency)


@command(
    files,
    epilog="Example:\n\n    sagastore files delete 07d0ab1a-0b06-5033-92dd-f0a0b699ce7f\n",
)
def delete(
    ctx: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of records.")],
    *,
    if_revision: DeleteGuard = None,
) -> Job:
    """Delete file records."""
    if if_revision is not None and len(ids) > 1:
        raise typer.BadParameter("--if-revision requires exactly one id")
    from sagastore.cli import file_commands

    return file_commands.delete(ctx.obj, ids, if_revision=if_revision)


@command(
    files,
    epilog="""Examples:

    sagastore files save contract.pdf --tag contract

    pdftotext contract.pdf - | sagastore files save contract.pdf --text -

    sagastore files save s3://bucket/notes --name notes --type text/plain
""",
)
def save(
    ctx: typer.Context,
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Where the application keeps the file, as recorded."),
    ],
    *,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the file. Default: the end of PATH.")
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Type of the file. Default: the extension of the name.",
        ),
    ] = "",
    size: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES", min=0, help="Size. Default: that of the local file PATH, or 0."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="UTF-8 file with the text of the file; - reads standard input."
        ),
    ] = None,
    id: Annotated[
        str, typer.Option(metavar="ID", help="Id of the record. Default: a new id.")
    ] = "",
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="A label; can be repeated.")
    ] = None,
    uploaded_at: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=point_in_time,
            help="Time of the upload in ISO form; UTC without an offset. Default: now.",
        ),
    ] = None,
    metadata: Annotated[
        dict[str, Any] | None,
        typer.Option(
            metavar="JSON", parser=json_object, help="A JSON object, such as '{\"pages\": 3}'."
        ),
    ] = None,
    if_revision: SaveGuard = None,
    durability: DurabilityOption = Durability.primary,
) -> Job:
    """Store the record of a file.

    Saving an identical record changes nothing; a different record with the same id replaces it.
    PATH is recorded as given and need not exist.
    """
    from sagastore.cli import file_commands

    draft = file_commands.Draft(
        path, name, kind, size, text, id, tuple(tag or ()), uploaded_at, metadata or {}
    )
    return file_commands.save(ctx.obj, draft, if_revision=if_revision, durability=durability.value)
