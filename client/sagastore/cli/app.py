"""The commands and their options; what they do is imported when they run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sagastore._version import __version__
from sagastore.cli.common_options import Job, command
from sagastore.cli.migrate import migrate
from sagastore.cli.option_values import (
    Durability,
    OnConflict,
    Order,
    json_object,
    moment,
    point_in_time,
)
from sagastore.cli.settings import DEFAULT_TARGET, Settings

__all__ = ["app"]

app = typer.Typer(
    name="sagastore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(migrate)

_CONNECTION = "Connection"
_FILTERS = "Filters"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sagastore {__version__}")
        raise typer.Exit


_Metadata = typer.Option(
    "--metadata", metavar="JSON", parser=json_object, help="A JSON object, such as '{\"turn\": 3}'."
)


@app.callback(epilog="`sagastore COMMAND --help` explains a command and has examples.")
def _common(
    ctx: typer.Context,
    *,
    target: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            envvar="SAGASTORE_TARGET",
            help="The server, or several joined by commas.",
        ),
    ] = DEFAULT_TARGET,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, or JSON Lines, for programs.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            envvar="SAGASTORE_TIMEOUT",
            show_default=False,
            help="How long to wait for an answer (10), or in import and export without any "
            "progress (60).",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="SAGASTORE_TOKEN_FILE",
            rich_help_panel=_CONNECTION,
            help="File with the bearer token; without it, the token is `$SAGASTORE_TOKEN`.",
        ),
    ] = None,
    allow_insecure_token: Annotated[
        bool,
        typer.Option(
            "--allow-insecure-token",
            envvar="SAGASTORE_ALLOW_INSECURE_TOKEN",
            rich_help_panel=_CONNECTION,
            help="Send the token in plain text to other machines.",
        ),
    ] = False,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls",
            envvar="SAGASTORE_TLS",
            rich_help_panel=_CONNECTION,
            help="Use TLS; the options below imply it.",
        ),
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="SAGASTORE_TLS_CA",
            rich_help_panel=_CONNECTION,
            help="Certificates of the authorities to trust (PEM).",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="SAGASTORE_TLS_CERT",
            rich_help_panel=_CONNECTION,
            help="Our own certificate (PEM), with --tls-key.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="SAGASTORE_TLS_KEY",
            rich_help_panel=_CONNECTION,
            help="Its private key (PEM).",
        ),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="SAGASTORE_TLS_SERVER_NAME",
            rich_help_panel=_CONNECTION,
            help="The name in the server's certificate, if it is not the one in --target.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep, find and move the messages of AI conversations in a SagaStore server."""
    del version
    ctx.obj = Settings(
        target=target,
        as_json=as_json,
        quiet=quiet,
        timeout=timeout,
        token_file=token_file,
        allow_insecure_token=allow_insecure_token,
        tls=tls,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_server_name=tls_server_name,
    )


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
        str, typer.Argument(metavar="CONTENT|-", help="What was said; - reads standard input.")
    ],
    *,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Who ran the model: openai, anthropic, google, ...")
    ],
    role: Annotated[
        str, typer.Option(metavar="NAME", help="Who spoke: user, assistant, system, tool, ...")
    ],
    id: Annotated[
        str, typer.Option(metavar="ID", help="Its id; without one it gets a new one.")
    ] = "",
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="The conversation it belongs to.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="A label; may be given several times.")
    ] = None,
    timestamp: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=point_in_time,
            help="When it was said, in ISO form; without an offset it is UTC. Default: now.",
        ),
    ] = None,
    metadata: Annotated[dict[str, Any] | None, _Metadata] = None,
    if_revision: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Only if this revision is the stored one; 0: only if the id is new.",
        ),
    ] = None,
    durability: Annotated[
        Durability, typer.Option(help="When it counts as done: on one store, or on every one.")
    ] = Durability.primary,
) -> Job:
    """Store one message.

    The same message again changes nothing; another one with the same id replaces it.
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
) -> Job:
    """Show messages by id, with everything that is known of them."""
    from sagastore.cli import read_commands

    return read_commands.get(ctx.obj, ids)


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
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="At most so many; 0: all.")] = 0,
) -> Job:
    """Show the messages of a session, oldest first."""
    from sagastore.cli import read_commands

    return read_commands.list_session(ctx.obj, session, newest_first=newest, limit=limit)


@command(
    app,
    epilog="""Examples:

    sagastore search "restaurant -italian"

    sagastore search '"half past" OR noon' --provider openai --since 2025-01-01 --order newest

    sagastore search --tag hotels --metadata '{"turn": 0}' --limit 5

    sagastore search --order newest -- "-italian pizza"   (after -- nothing is an option)
""",
)
def search(
    ctx: typer.Context,
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            show_default=False,
            help='Words that must all be there, "a phrase", -excluded, prefix*, OR.',
        ),
    ] = "",
    *,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG", rich_help_panel=_FILTERS, help="With this tag; given twice: with both."
        ),
    ] = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_FILTERS, help="Of this provider.")
    ] = "",
    role: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_FILTERS, help="Of this role.")
    ] = "",
    session: Annotated[
        str | None, typer.Option(metavar="ID", rich_help_panel=_FILTERS, help="Of this session.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=moment,
            rich_help_panel=_FILTERS,
            help="Said at this time or later: ISO form (UTC without an offset), or 30m, 12h, 7d.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME", parser=moment, rich_help_panel=_FILTERS, help="Said before this time."
        ),
    ] = None,
    metadata: Annotated[
        dict[str, Any] | None,
        typer.Option(
            metavar="JSON",
            parser=json_object,
            rich_help_panel=_FILTERS,
            help="With metadata that contain this object.",
        ),
    ] = None,
    order: Annotated[Order, typer.Option(help="Best matches first, or by time.")] = Order.relevance,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="At most so many; 0: all.")] = 20,
) -> Job:
    """Find messages by words and filters.

    Case, accents and English endings do not count. Without words, the filters decide alone.
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
    )


@command(app, epilog="Example:\n\n    sagastore delete 07d0ab1a-0b06-5033-92dd-f0a0b699ce7f\n")
def delete(
    ctx: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of messages.")],
    *,
    if_revision: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only if this revision is the stored one."),
    ] = None,
) -> Job:
    """Remove messages."""
    if if_revision is not None and len(ids) > 1:
        raise typer.BadParameter("--if-revision goes with one id")
    from sagastore.cli import write_commands

    return write_commands.delete(ctx.obj, ids, if_revision=if_revision)


@command(
    app, epilog="Example:\n\n    sagastore --target db.example:50051 ping\n", no_args_is_help=False
)
def ping(ctx: typer.Context) -> Job:
    """Tell whether the server serves, how fast it answers, and what it holds."""
    from sagastore.cli import read_commands

    return read_commands.ping(ctx.obj)


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
            help="A memory.db of ARC SAGA, a file of a SagaStore server, or JSON Lines; also "
            "compressed by xz, gzip or bzip2; - reads standard input.",
        ),
    ],
    *,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What happens to an id that is stored already.")
    ] = OnConflict.replace_,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Messages in a batch.")
    ] = 1000,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the rows that cannot be stored, and why, to this file."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, also after an interruption.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a row was rejected.")
    ] = False,
) -> Job:
    """Load messages from a file.

    An import that was interrupted, however it was, goes on where it stopped when the same
    command is run again; nothing is lost, and nothing is stored twice. The file is only read.

    A line of JSON Lines is an object with id, provider, role, content, tags, timestamp (ISO
    form, UTC without an offset), metadata, session_id; only provider, role and content are
    required. Rows that cannot be stored are listed at the end, and spoil no other.
    """
    from sagastore.cli import import_command

    options = import_command.ImportOptions(
        file, on_conflict.value, batch_size, rejects, restart, strict
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
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, also after an interruption.")
    ] = False,
) -> Job:
    """Write every message to a file, as JSON Lines in the order of their ids.

    `import` takes the file. The same messages give the same bytes. FILE appears when it is
    complete; until then it is FILE.part, with which an interrupted export goes on when the same
    command is run again. Nobody who writes has to wait.
    """
    from sagastore.cli import export_command

    return export_command.export_file(ctx.obj, file, restart=restart)
