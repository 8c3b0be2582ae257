"""The `sagastore ping` and `stats` commands: the state of the service."""

from __future__ import annotations

import typer

from sagastore.cli.common_options import Job, command

__all__ = ["service"]

service = typer.Typer()


@command(
    service,
    epilog="Example:\n\n    sagastore --target db.example:50051 ping\n",
    no_args_is_help=False,
)
def ping(ctx: typer.Context) -> Job:
    """Show whether the server is serving, its latency, and the number of messages."""
    from sagastore.cli import read_commands

    return read_commands.ping(ctx.obj)


@command(
    service,
    epilog="""Examples:

    sagastore stats

    sagastore stats --json
""",
    no_args_is_help=False,
)
def stats(ctx: typer.Context) -> Job:
    """Show what the service holds: messages, the health of the stores, the migration's phase.

    The number of messages is that of the store that serves reads, and may be some seconds old.
    """
    from sagastore.cli import stats_command

    return stats_command.stats(ctx.obj)
