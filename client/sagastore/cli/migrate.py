"""`sagastore migrate`: the options of its commands; what they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagastore.cli.common_options import Job, command
from sagastore.cli.option_values import PhaseName

__all__ = ["migrate"]

migrate = typer.Typer(
    name="migrate",
    help="Watch and steer the move from SQLite to PostgreSQL. It goes through the phases "
    "sqlite-only, dual-write, backfill, read-postgres and postgres-only, one at a time, while the "
    "service runs; back again from all but the last.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_BatchSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=10_000, help="Rows copied in one transaction.")
]
_MaxRows = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Rows copied in a second at most; 0 lifts the limit."),
]


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate status`")
def status(ctx: typer.Context) -> Job:
    """Show where the migration stands, what is in its way, and what to type next."""
    from sagastore.cli import status_commands

    return status_commands.status(ctx.obj)


@command(
    migrate,
    no_args_is_help=False,
    epilog="""Examples:

    sagastore migrate watch

    sagastore migrate to backfill && sagastore migrate watch --until-ready && \\
    sagastore migrate to read-postgres

    sagastore migrate watch --json --until postgres-only
""",
)
def watch(
    ctx: typer.Context,
    *,
    until: Annotated[
        PhaseName | None,
        typer.Option(help="End when this phase, or a later one, is in force."),
    ] = None,
    until_backfill_done: Annotated[
        bool,
        typer.Option(
            "--until-backfill-done", help="End when all rows are copied and all indexes built."
        ),
    ] = False,
    until_ready: Annotated[
        bool,
        typer.Option(
            "--until-ready",
            help="End when nothing is in the way of the next phase but rows in quarantine, "
            "which no waiting accepts.",
        ),
    ] = False,
) -> Job:
    """Show where the migration stands, and go on showing it.

    On a terminal the page of `status`, kept up to date; elsewhere a line for each change, and for
    progress every few seconds; with `--json` everything the server tells, a document a line.

    Ctrl+C ends it. With an `--until…` it ends by itself, with 0, as soon as all that is given
    holds; Ctrl+C is then a failure (130). A backfill that fails is tried again by the server, so
    waiting goes on. It survives a restart of the server, and gives up, with 1, after `--timeout`
    seconds (60) without news.
    """
    from sagastore.cli import status_watch

    conditions = status_watch.Until(
        None if until is None else until.phase, until_backfill_done, until_ready
    )
    return status_watch.watch(ctx.obj, conditions)


@command(
    migrate,
    epilog="""Examples:

    sagastore migrate to dual-write

    sagastore migrate to read-postgres --dry-run

    sagastore migrate to read-postgres --accept-quarantine
""",
)
def to(
    ctx: typer.Context,
    phase: Annotated[PhaseName, typer.Argument(help="The next phase, or the one before.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell whether it is possible now.")
    ] = False,
    accept_quarantine: Annotated[
        bool,
        typer.Option(
            "--accept-quarantine",
            help="Rows in quarantine do not stand in the way; `quarantine` lists them.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before going to postgres-only.")
    ] = False,
) -> Job:
    """Go to another phase, without a restart: one forward, or one back.

    What is in the way is listed on standard error, with what to do about it; nothing has changed
    then, and the exit status is 1. To be in the phase already is success.

    There is no way back from postgres-only; on a terminal you are asked before. It verifies and
    archives the SQLite file, which takes minutes if that is large; `--timeout` is 600 seconds here.
    The server ends what it has begun, even if nobody waits for it any more.
    """
    from sagastore.cli import phase_commands

    return phase_commands.change_phase(
        ctx.obj, phase.phase, dry_run=dry_run, accept_quarantine=accept_quarantine, sure=yes
    )


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate pause`")
def pause(ctx: typer.Context) -> Job:
    """Hold the backfill. Writes still go to both stores."""
    from sagastore.cli import phase_commands

    return phase_commands.control_backfill(ctx.obj, paused=True)


@command(
    migrate,
    no_args_is_help=False,
    epilog="""Examples:

    sagastore migrate resume

    sagastore migrate resume --max-rows-per-second 500
""",
)
def resume(
    ctx: typer.Context, *, batch_size: _BatchSize = None, max_rows_per_second: _MaxRows = None
) -> Job:
    """Let the backfill go on where it was, at another pace if one is given."""
    from sagastore.cli import phase_commands

    return phase_commands.control_backfill(
        ctx.obj, paused=False, batch_size=batch_size, max_rows_per_second=max_rows_per_second
    )


@command(
    migrate,
    epilog="""Examples:

    sagastore migrate throttle --max-rows-per-second 500

    sagastore migrate throttle --batch-size 200 --max-rows-per-second 0
""",
)
def throttle(
    ctx: typer.Context, *, batch_size: _BatchSize = None, max_rows_per_second: _MaxRows = None
) -> Job:
    """Set the pace of the backfill, whether it runs or is paused. What is not given stays."""
    if batch_size is None and max_rows_per_second is None:
        raise typer.BadParameter("give --batch-size, --max-rows-per-second, or both")
    from sagastore.cli import phase_commands

    return phase_commands.control_backfill(
        ctx.obj, batch_size=batch_size, max_rows_per_second=max_rows_per_second
    )


@command(
    migrate,
    no_args_is_help=False,
    epilog="""Examples:

    sagastore migrate verify

    sagastore migrate verify --repair; sagastore migrate verify
""",
)
def verify(
    ctx: typer.Context,
    *,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Put rows that differ back into the journal; SQLite is right."
        ),
    ] = False,
) -> Job:
    """Compare every field of every row of the two stores, while writes go on.

    Exits with 0 only if nothing differs. Rows that `--repair` put back into the journal are copied
    in a moment; only the next `verify` can tell that they agree then, so the status is 1 here, too.

    Gives up after `--timeout` seconds (300) without progress.
    """
    from sagastore.cli import verify_command

    return verify_command.verify(ctx.obj, repair=repair)


@command(
    migrate,
    epilog="""Examples:

    sagastore migrate receipt messages.db.receipt.json

    sagastore migrate receipt messages.db.archive --json
""",
)
def receipt(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="The receipt, or the archive; the other one lies beside it.")
    ],
) -> Job:
    """Check that an archived SQLite file is still what its receipt says.

    It reads the whole file anew, and needs no server. The exit status is 0 only if everything is as
    it was when the receipt was written.
    """
    from sagastore.cli import receipt_command

    return receipt_command.receipt(ctx.obj, file)


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
    from sagastore.cli import status_commands

    return status_commands.quarantine(ctx.obj, limit)
