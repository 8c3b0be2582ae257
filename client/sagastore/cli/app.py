"""The commands and their options; a command imports its implementation when it runs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sagastore._version import __version__
from sagastore.cli.common_options import Job, command, takes_common_options
from sagastore.cli.files import files
from sagastore.cli.migrate import migrate
from sagastore.cli.option_values import (
    Durability,
    OnConflict,
    Order,
    json_object,
    moment,
    point_in_time,
)
from sagastore.cli.service import service
from sagastore.cli.sessions import sessions
from sagastore.cli.shared_options import (
    ConsistencyOption,
    DeleteGuard,
    DurabilityOption,
    Limit,
    Restart,
    SaveGuard,
    TempLimit,
    Yes,
)
from sagastore.commandline.program import CONTEXT, Program

__all__ = ["app"]

app = typer.Typer(
    name="sagastore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    cls=Program,
    context_settings=CONTEXT,
)

app.add_typer(sessions)
app.add_typer(files)
app.add_typer(service)
app.add_typer(migrate)

_FILTERS = "Filters"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sagastore {__version__}")
        raise typer.Exit


_Metadata = typer.Option(
    "--metadata", metavar="JSON", parser=json_object, help="A JSON object, such as '{\"turn\": 3}'."
)


@app.callback(
    epilog="`sagastore COMMAND -h` explains a command and has examples. The options above can be "
    "given before and after the command."
)
@takes_common_options
def _common(
    ctx: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Store, search and migrate the messages of AI conversations in a SagaStore server."""
    del ctx, version


@command(
    app,
    epilog="""Examples:

    sagastore save --provider openai --role user "Where shall we eat?"

    sagastore save --provider anthropic --role assistant --session trip --tag food - < answer.txt
""",
)
def save(
    ctx: typer.Context,
    content: Annotated[
        str, typer.Argument(metavar="CONTENT|-", help="The text; - reads standard input.")
    ],
    *,
    provider: Annotated[
        str,
        typer.Option(metavar="NAME", help="Provider of the model: openai, anthropic, google, ..."),
    ],
    role: Annotated[
        str,
        typer.Option(metavar="NAME", help="Role of the author: user, assistant, system, tool, ..."),
    ],
    id: Annotated[
        str, typer.Option(metavar="ID", help="Id of the message. Default: a new id.")
    ] = "",
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of the conversation.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="A label; can be repeated.")
    ] = None,
    timestamp: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=point_in_time,
            help="Time of the message in ISO form; UTC without an offset. Default: now.",
        ),
    ] = None,
    metadata: Annotated[dict[str, Any] | None, _Metadata] = None,
    if_revision: SaveGuard = None,
    durability: DurabilityOption = Durability.primary,
) -> Job:
    """Store one message.

    Saving an identical message changes nothing; a different message with the same id replaces it.
    """
    from sagastore.cli import write_commands

    return write_commands.save(
        ctx.obj,
        content,
        provider=provider,
        role=role,
        id=id,
        tags=tag or (),
        timestamp=timestamp,
        metadata=metadata or {},
        session_id=session,
        if_revision=if_revision,
        durability=durability.value,
    )


@command(
    app,
    epilog="""Examples:

    sagastore get 07d0ab1a-0b06-5033-92dd-f0a0b699ce7f

    sagastore get ID1 ID2 --json
""",
)
def get(
    ctx: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of messages.")],
    *,
    consistency: ConsistencyOption = None,
) -> Job:
    """Show all fields of messages by id."""
    from sagastore.cli import read_commands

    return read_commands.get(ctx.obj, ids, consistency)


@command(
    app,
    name="list",
    epilog="""Examples:

    sagastore list dev-1_00000

    sagastore list dev-1_00000 --newest --limit 5
""",
)
def list_(
    ctx: typer.Context,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the conversation.")],
    *,
    newest: Annotated[bool, typer.Option("--newest", help="Newest first.")] = False,
    limit: Limit = 0,
    consistency: ConsistencyOption = None,
) -> Job:
    """Show the messages of a session with their places in it, oldest first."""
    from sagastore.cli import read_commands

    return read_commands.list_session(
        ctx.obj, session, newest_first=newest, limit=limit, consistency=consistency
    )


@command(
    app,
    epilog="""Examples:

    sagastore search "restaurant -italian"

    sagastore search '"half past" OR noon' --provider openai --since 2025-01-01 --order newest

    sagastore search '(pizza OR pasta) NOT delivery'

    sagastore search --tag hotels --metadata '{"turn": 0}' --limit 5

    sagastore search --order newest -- "-italian pizza"   (no options after --)
""",
)
def search(
    ctx: typer.Context,
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            show_default=False,
            help='Words that must all match, "a phrase", -excluded, prefix*, AND, OR, NOT, ( ).',
        ),
    ] = "",
    *,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG", rich_help_panel=_FILTERS, help="Has this tag; repeat for several tags."
        ),
    ] = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_FILTERS, help="Has this provider.")
    ] = "",
    role: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_FILTERS, help="Has this role.")
    ] = "",
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", rich_help_panel=_FILTERS, help="Belongs to this session."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=moment,
            rich_help_panel=_FILTERS,
            help="At or after this time: ISO form (UTC without an offset), or 30m, 12h, 7d ago.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME", parser=moment, rich_help_panel=_FILTERS, help="Before this time."
        ),
    ] = None,
    metadata: Annotated[
        dict[str, Any] | None,
        typer.Option(
            metavar="JSON",
            parser=json_object,
            rich_help_panel=_FILTERS,
            help="Metadata contains this object.",
        ),
    ] = None,
    order: Annotated[Order, typer.Option(help="By relevance, or by time.")] = Order.relevance,
    limit: Limit = 20,
    consistency: ConsistencyOption = None,
) -> Job:
    """Find messages by words and filters.

    Case, accents and English endings are ignored. Without QUERY, all messages that pass the
    filters match.
    """
    from sagastore.cli import read_commands

    return read_commands.search(
        ctx.obj,
        query,
        limit=limit,
        tags=tag or (),
        provider=provider,
        role=role,
        session_id=session,
        start=since,
        end=until,
        metadata=metadata,
        order=order.value,
        consistency=consistency,
    )


@command(
    app,
    epilog="""Examples:

    sagastore delete 07d0ab1a-0b06-5033-92dd-f0a0b699ce7f

    sagastore delete --session trip
""",
)
def delete(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of messages.")] = None,
    *,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Delete this session with all its messages instead."),
    ] = None,
    yes: Yes = False,
    if_revision: DeleteGuard = None,
) -> Job:
    """Delete messages, or a whole session.

    With `--session`, the command asks for confirmation on a terminal; elsewhere it requires
    `--yes`.
    """
    if bool(ids) == (session is not None):
        raise typer.BadParameter("give ids of messages, or --session")
    if session is not None:
        from sagastore.cli import session_commands

        return session_commands.delete(ctx.obj, session, if_revision=if_revision, sure=yes)
    if if_revision is not None and len(ids or ()) > 1:
        raise typer.BadParameter("--if-revision requires exactly one id")
    from sagastore.cli import write_commands

    return write_commands.delete(ctx.obj, ids or (), if_revision=if_revision)


@command(
    app,
    name="import",
    epilog="""Examples:

    sagastore import memory.db --rejects rejected.jsonl

    sagastore import messages.jsonl.xz --on-conflict skip

    zcat messages.jsonl.gz | sagastore import -
""",
)
def import_(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A memory.db of ARC SAGA, a file of a SagaStore server, or JSON Lines. Can be "
            "compressed with xz, gzip or bzip2; - reads standard input.",
        ),
    ],
    *,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What to do if an id is already stored.")
    ] = OnConflict.replace_,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Messages per batch.")
    ] = 1000,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write rejected rows and the reasons to this file."),
    ] = None,
    restart: Restart = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with status 6 if a row was rejected or left behind, such as a file record.",
        ),
    ] = False,
    temp_limit: TempLimit = 16,
) -> Job:
    """Import messages from a file.

    Run the same command again to resume an interrupted import; no message is lost or stored
    twice. The file is not changed.

    A line of JSON Lines is an object with id, provider, role, content, tags, timestamp (ISO
    form, UTC without an offset), metadata, session_id, created_at; only provider, role and content
    are required. Messages of a session with equal times keep the order of the file. Rejected
    rows are listed at the end and do not affect other rows. Exit status 6 if nothing was stored.
    """
    from sagastore.cli import import_command

    options = import_command.ImportOptions(
        file, on_conflict.value, batch_size, rejects, restart, strict, temp_limit << 30
    )
    return import_command.import_file(ctx.obj, options)


@command(
    app,
    epilog="""Examples:

    sagastore export backup.jsonl

    sagastore export - | xz > backup.jsonl.xz
""",
)
def export(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|-", help="The file to write; - writes standard output."),
    ],
    *,
    restart: Restart = False,
    consistency: ConsistencyOption = None,
) -> Job:
    """Write all messages to a file, as JSON Lines in the order of their ids.

    `import` reads the file. The same messages always give the same bytes. FILE is created when
    the export is complete; until then the data is in FILE.part. Run the same command again to
    resume an interrupted export. Writers are not blocked.
    """
    from sagastore.cli import export_command

    return export_command.export_file(ctx.obj, file, restart=restart, consistency=consistency)
