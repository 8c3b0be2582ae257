"""Worker process: reads jobs and writes results as JSON lines.

    python -m tests.simulation.worker [--plant NAME]

``campaign.py`` starts each worker with a different PYTHONHASHSEED, so that the repetition of a
round in another worker reveals any dependency on hashes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tests.simulation.rounds import Job, explain, run

COLLECT_EVERY = 10
"""Rounds between two garbage collections."""


def main() -> None:
    """Run jobs until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plant", default="")
    arguments = parser.parse_args()
    if arguments.plant:
        from tests.simulation.plants import PLANTS  # noqa: PLC0415 - only where it is wanted

        PLANTS[arguments.plant].put()
    _serve()


def _serve() -> None:
    # The coroutines of a killed process end when they are collected, after the round whose log
    # they would be part of.
    logging.getLogger("sagastore_server").addHandler(logging.NullHandler())
    gc.disable()
    for number, line in enumerate(sys.stdin, 1):
        asked = json.loads(line)
        sys.stdout.write(json.dumps(_answer(asked)) + "\n")
        sys.stdout.flush()
        if number % COLLECT_EVERY == 0:
            gc.collect()


def _answer(asked: dict[str, Any]) -> object:
    file = asked.pop("explain", None)
    job = Job(**asked)
    if file is not None:
        return explain(job, Path(file))
    return run(job)._asdict()


if __name__ == "__main__":
    main()
