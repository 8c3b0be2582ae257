"""`sagastore migrate`: where the migration stands, and what it set aside."""

from __future__ import annotations

from typing import Annotated

import typer

from sagastore.cli.common import Job, command

__all__ = ["migrate"]

migrate = typer.Typer(
    name="migrate",
    help="Watch the move from SQLite to PostgreSQL, and see the rows in quarantine.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate status`")
def status(ctx: typer.Context) -> Job:
    """Show the phase, the stores and the quarantine."""
    from sagastore.cli import migrating

    return migrating.status(ctx.obj)


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate quarantine`")
def quarantine(
    ctx: typer.Context,
    *,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="Rows shown at most; 0 shows all.")
    ] = 50,
) -> Job:
    """List the rows that no message can represent faithfully, and why.

    They came with a legacy file. `--json` prints their raw values as well.
    """
    from sagastore.cli import migrating

    return migrating.quarantine(ctx.obj, limit)
