"""Checks rounds of the simulation against the specification (``make traces``).

    python -m tests.simulation.check_traces [--rounds N] [--seed N]

Exit status 1 if a round does not conform to the specification. Rounds of the profiles ``rival`` and
``mistakes`` are left out, because a second server, file or PostgreSQL is not part of a trace.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.simulation.recording import record
from tests.simulation.rounds import Job
from tests.simulation.settings import profile_of
from tools.spec.trace import read, report, validate


def main() -> int:
    """Record rounds and check them; return the exit status."""
    parser = argparse.ArgumentParser(prog="make traces", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds to check (10)")
    parser.add_argument("--seed", type=int, default=100, help="seed of the first round (100)")
    arguments = parser.parse_args()
    rejected = checked = events = 0
    seed = arguments.seed
    while checked < arguments.rounds:
        if profile_of(seed) not in {"rival", "mistakes"}:
            result = validate(read(map(json.dumps, record(Job(seed).world()))))
            checked += 1
            events += result.events
            rejected += not result.accepted
            sys.stdout.write(report(f"seed {seed} ({profile_of(seed)})", result) + "\n")
            sys.stdout.flush()
        seed += 1
    sys.stdout.write(f"{checked} rounds, {events:,} events, {rejected} rejected\n")
    return 1 if rejected else 0


if __name__ == "__main__":
    sys.exit(main())
