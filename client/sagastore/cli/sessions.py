"""The `sagastore sessions` commands and their options."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from sagastore.cli.common_options import Job, command, group
from sagastore.cli.option_values import json_object, moment
from sagastore.cli.shared_options import ConsistencyOption, DeleteGuard, Limit, Yes

__all__ = ["sessions"]

sessions = group(
    "sessions",
    "List, show, rename and delete sessions: the conversations that messages belong to.",
)

_FILTERS = "Filters"
_Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the session.")]


@command(
    sessions,
    name="list",
    no_args_is_help=False,
    epilog="""Examples:

    sagastore sessions list

    sagastore sessions list --provider anthropic --since 7d --limit 0

    sagastore sessions list --title "Trip" --json
""",
)
def list_(
    ctx: typer.Context,
    *,
    oldest: Annotated[
        bool, typer.Option("--oldest", help="The least recently active first.")
    ] = False,
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=moment,
            rich_help_panel=_FILTERS,
            help="Active at or after this time: ISO form (UTC without an offset), or 30m, 12h, 7d "
            "ago.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=moment,
            rich_help_panel=_FILTERS,
            help="Last active before this time.",
        ),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=_FILTERS, help="Has a message of this provider."
        ),
    ] = "",
    title: Annotated[
        str,
        typer.Option(
            metavar="TEXT", rich_help_panel=_FILTERS, help="The title begins with this text."
        ),
    ] = "",
    metadata: Annotated[
        dict[str, Any] | None,
        typer.Option(
            metavar="JSON",
            parser=json_object,
            rich_help_panel=_FILTERS,
            help="Metadata contains this object.",
        ),
    ] = None,
    limit: Limit = 20,
    consistency: ConsistencyOption = None,
) -> Job:
    """List sessions, the most recently active first.

    A session without a title is listed with the beginning of its first message.
    """
    from sagastore.cli import session_commands

    return session_commands.list_sessions(
        ctx.obj,
        limit,
        oldest_first=oldest,
        start_time=since,
        end_time=until,
        metadata=metadata,
        provider=provider,
        title_prefix=title,
        consistency=consistency,
    )


@command(
    sessions,
    epilog="""Examples:

    sagastore sessions show trip

    sagastore sessions show trip --messages 0 --json
""",
)
def show(
    ctx: typer.Context,
    id: _Id,
    *,
    messages: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of last messages; 0: none.")
    ] = 10,
    consistency: ConsistencyOption = None,
) -> Job:
    """Show the fields of a session and its last messages, oldest first.

    `sagastore list ID` shows all messages. With `--json`, the messages are in the field `messages`
    of the session.
    """
    from sagastore.cli import session_commands

    return session_commands.show(ctx.obj, id, messages, consistency)


@command(
    sessions,
    epilog="""Examples:

    sagastore sessions delete trip

    sagastore sessions delete trip --yes
""",
)
def delete(
    ctx: typer.Context, id: _Id, *, yes: Yes = False, if_revision: DeleteGuard = None
) -> Job:
    """Delete a session with all its messages.

    On a terminal the command asks for confirmation; elsewhere it requires `--yes`. The server
    completes a deletion that has begun, even if this command stops. `--timeout` is 600 seconds
    here.
    """
    from sagastore.cli import session_commands

    return session_commands.delete(ctx.obj, id, if_revision=if_revision, sure=yes)


@command(
    sessions,
    epilog="""Examples:

    sagastore sessions rename trip "Trip to Porto"

    sagastore sessions rename trip ""   (removes the title)
""",
)
def rename(
    ctx: typer.Context,
    id: _Id,
    title: Annotated[
        str, typer.Argument(metavar="TITLE", help="The new title, at most 512 characters.")
    ],
) -> Job:
    """Change the title of a session."""
    from sagastore.cli import session_commands

    return session_commands.rename(ctx.obj, id, title)
