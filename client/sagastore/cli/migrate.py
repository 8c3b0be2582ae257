"""The `sagastore migrate` commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagastore.cli.common_options import Job, command, group
from sagastore.cli.option_values import PhaseName

__all__ = ["migrate"]

migrate = group(
    "migrate",
    "Watch and control the live migration from SQLite to PostgreSQL. Its phases are "
    "sqlite-only, dual-write, backfill, read-postgres and postgres-only. Each change goes to the "
    "next or the previous phase; postgres-only cannot be reversed.",
)

_BatchSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=10_000, help="Rows copied per transaction.")
]
_MaxRows = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Maximum rows copied per second; 0 removes the limit."),
]


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate status`")
def status(ctx: typer.Context) -> Job:
    """Show the state of the migration, the blockers, and the next command."""
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
        typer.Option(help="Exit when this phase or a later one is reached."),
    ] = None,
    until_backfill_done: Annotated[
        bool,
        typer.Option(
            "--until-backfill-done", help="Exit when all rows are copied and all indexes are built."
        ),
    ] = False,
    until_ready: Annotated[
        bool,
        typer.Option(
            "--until-ready",
            help="Exit when nothing blocks the next phase, except quarantined rows, which an "
            "operator must accept.",
        ),
    ] = False,
) -> Job:
    """Show the state of the migration continuously.

    On a terminal, the page of `status` is updated in place. Elsewhere, each change is a line, and
    progress is a line every few seconds. With `--json`, each update of the server is a JSON line.

    Ctrl+C ends it. With `--until…` options it exits with 0 as soon as all of them hold, and Ctrl+C
    is a failure (130). It continues after a failed backfill, which the server retries, and after a
    restart of the server. It exits with 4 after `--timeout` seconds (60) without an update.
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
    phase: Annotated[
        PhaseName,
        typer.Argument(
            metavar="PHASE",
            help="The next or the previous phase: sqlite-only, dual-write, backfill, "
            "read-postgres or postgres-only.",
        ),
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check whether the change is possible now.")
    ] = False,
    accept_quarantine: Annotated[
        bool,
        typer.Option(
            "--accept-quarantine",
            help="Continue although rows are in quarantine; `quarantine` lists them.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation of postgres-only.")
    ] = False,
) -> Job:
    """Change to the next or the previous phase, without a restart.

    If the change is blocked, the blockers and their remedies are listed on standard error, nothing
    has changed, and the exit status is 1. If the phase is already reached, the command succeeds.

    The change to postgres-only cannot be reversed; on a terminal it requires confirmation. It
    verifies and archives the SQLite file, which takes minutes for a large file; `--timeout` is 600
    seconds here. The server completes a change that has started, even if this command stops.
    """
    from sagastore.cli import phase_commands

    return phase_commands.change_phase(
        ctx.obj, phase.phase, dry_run=dry_run, accept_quarantine=accept_quarantine, sure=yes
    )


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate pause`")
def pause(ctx: typer.Context) -> Job:
    """Pause the backfill. Writes still go to both stores."""
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
    """Resume the backfill, optionally with other limits."""
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
    """Set the limits of the backfill. Omitted limits do not change."""
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
        typer.Option("--repair", help="Copy differing rows from SQLite to PostgreSQL again."),
    ] = False,
) -> Job:
    """Compare every field of every row of the two stores while writes continue.

    Exits with 0 only if nothing differs. `--repair` queues rows that differ for replication and
    also exits with 1, because only the next `verify` can show that they are equal.

    Exits with 4 after `--timeout` seconds (300) without progress.
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
        Path,
        typer.Argument(
            metavar="FILE", help="The receipt or the archive; both must be in one folder."
        ),
    ],
) -> Job:
    """Verify an archived SQLite file against its receipt.

    Reads the whole file and does not need a server. The exit status is 0 only if neither file has
    changed since the receipt was written.
    """
    from sagastore.cli import receipt_command

    return receipt_command.receipt(ctx.obj, file)


@command(migrate, no_args_is_help=False, epilog="Example: `sagastore migrate quarantine`")
def quarantine(
    ctx: typer.Context,
    *,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="Maximum number of rows; 0: all.")
    ] = 50,
) -> Job:
    """List the quarantined rows of a legacy file, which no message can represent, with reasons.

    `--json` also prints their raw values.
    """
    from sagastore.cli import status_commands

    return status_commands.quarantine(ctx.obj, limit)
