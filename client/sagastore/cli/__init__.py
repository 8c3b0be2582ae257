"""The `sagastore` command; `pip install 'sagastore[cli]'` brings what it needs."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

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
        raise SystemExit(1)
    # gRPC's core writes lines of its own to standard error; what it has to say
    # the library says better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from sagastore.cli.app import app

        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
