"""Options that several commands have in common.

Apart from `common_options`, because not every command has them.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sagastore.cli.option_values import Durability, complete_consistency, consistency

__all__ = [
    "ConsistencyOption",
    "DeleteGuard",
    "DurabilityOption",
    "Limit",
    "Restart",
    "SaveGuard",
    "TempLimit",
    "Yes",
]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Limit = Annotated[int, typer.Option(metavar="N", min=0, help="Maximum number; 0: all.")]
DeleteGuard = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Delete only if this is the stored revision."),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Start from the beginning instead of resuming an interrupted run."
    ),
]
TempLimit = Annotated[
    int,
    typer.Option(
        metavar="GIB",
        min=1,
        help="Largest temporary copy of a compressed or piped database, in GiB.",
    ),
]
SaveGuard = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Save only if this is the stored revision; 0: only if the id is new.",
    ),
]
ConsistencyOption = Annotated[
    Any,
    typer.Option(
        metavar="LEVEL",
        parser=consistency,
        autocompletion=complete_consistency,
        show_default=False,
        help="State to read: latest (default), any_replica, or the position that a command "
        "printed with --json.",
    ),
]
DurabilityOption = Annotated[
    Durability,
    typer.Option(help="Return when the primary store has the write, or when both stores have it."),
]
