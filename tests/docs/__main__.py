"""Runs the marked blocks of pages by hand: ``python -m tests.docs PAGE PORT... [NAME=VALUE...]``.

Each PORT of the page becomes a free one, each variable is set in the terminals. Prints the output
of every command that differs from the page.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.docs.page import steps
from tests.docs.shell import Session


def main(page: str, *given: str) -> int:
    """Run a page; return 1 if its outputs differ from those that it shows."""
    ports = tuple(int(one) for one in given if one.isdigit())
    env = dict(one.split("=", 1) for one in given if "=" in one)
    differing = 0
    with tempfile.TemporaryDirectory(prefix="journey-") as name:
        Path(name).chmod(0o755)
        with Session(Path(name), ports, env) as session:
            for step in steps(Path(page)):
                print(f"--- {step.kind} {step.command or step.shown}", flush=True)  # noqa: T201
                for difference in session.perform(step):
                    print(difference, flush=True)  # noqa: T201
                    differing = 1
    return differing


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
