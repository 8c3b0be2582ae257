"""The `sagastore` command; `pip install 'sagastore[cli]'` installs its dependencies."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from sagastore.commandline.exit_status import ExitStatus

__all__ = ["main"]

_EXTRA = ("typer", "rich", "platformdirs")


def main() -> None:
    """Run the command."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"sagastore: the command line needs {', '.join(missing)}: "
            "pip install 'sagastore[cli]'\n"
        )
        raise SystemExit(ExitStatus.FAILED)
    # gRPC's core writes to standard error; the errors of the library have the same
    # information.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from sagastore.cli.app import app

        app()
    except KeyboardInterrupt:
        raise SystemExit(ExitStatus.INTERRUPTED) from None
