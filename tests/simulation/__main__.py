"""Command line of the deterministic simulation (``make simulate``).

    python -m tests.simulation [--rounds N] [--seed N] [--profile NAME] [--order fifo|shuffle]
    python -m tests.simulation --plant NAME|all [--within N]   with planted faults
    python -m tests.simulation --coverage                      branch coverage of migration/

Exit status 1 if a round failed or was not repeatable, if a planted fault was not caught, or if in a
long run a fault never occurred in a phase.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

from tests.simulation.campaign import Campaign, Options, measured
from tests.simulation.plants import NOT_APPLICABLE, PLANTS, Plant
from tests.simulation.report import Totals
from tests.simulation.rounds import ORDERS
from tests.simulation.settings import PROFILES

FOLDER = Path("var/simulation")
LONG_RUN = 2000
"""Rounds after which every fault must have occurred in every phase."""


def main() -> int:
    arguments = _arguments()
    if arguments.plant == "all":
        return _try_plants(arguments)
    options = _options(arguments)
    planted = f", planted: {options.plant}" if options.plant else ""
    _say(f"{options.rounds:,} rounds from seed {options.seed} on {options.jobs} cores{planted}")
    began = time.monotonic()
    totals = asyncio.run(Campaign(options, _say).run())
    _say("\n" + totals.text())
    _say(f"\n  {time.monotonic() - began:,.0f} s total")
    (options.folder / "report.json").write_text(json.dumps(totals.as_json(), indent=2) + "\n")
    if options.coverage:
        _report_coverage(options)
    return 0 if _is_good(totals, options) else 1


def _is_good(totals: Totals, options: Options) -> bool:
    never = totals.never() if totals.rounds >= LONG_RUN and not options.profile else []
    for name, phase in never:
        _say(f"  NEVER: {name} in {phase}")
    complete = totals.rounds == options.rounds
    return complete and not (totals.failed or totals.not_replayed or never)


# ---------------------------------------------------------------------- planted faults


def _try_plants(arguments: argparse.Namespace) -> int:
    """Run each planted fault until it is caught, and print a table."""
    rows, escaped = [], 0
    for plant in PLANTS.values():
        options = _options(arguments)._replace(
            plant=plant.name,
            profile=arguments.profile or plant.profile,
            rounds=arguments.within,
            until_caught=True,
            explain=0,
        )
        totals = asyncio.run(Campaign(options, _quiet).run())
        rows.append(_plant_row(plant, totals, options.seed))
        escaped += totals.first_failure is None
        _say(rows[-1])
    _say("")
    for name, why in NOT_APPLICABLE.items():
        _say(f"not applicable: {name}: {why}")
    head = "| planted fault | what is wrong | caught in round | profile | by |\n" + "|---" * 5 + "|"
    (arguments.folder / "planted.md").write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    caught = len(PLANTS) - escaped
    _say(f"{caught} of {len(PLANTS)} planted faults caught within {arguments.within} rounds")
    return 1 if escaped else 0


def _plant_row(plant: Plant, totals: Totals, seed: int) -> str:
    found = totals.first_failure
    if found is None:
        return f"| `{plant.name}` | {plant.what} | **not caught** | | |"
    by = found.violations[0].partition(" s: ")[2].splitlines()[0][:90].replace("|", "/")
    number = found.seed - seed + 1
    return f"| `{plant.name}` | {plant.what} | {number} | {found.profile} | {by} |"


# ---------------------------------------------------------------------- options and output


def _report_coverage(options: Options) -> None:
    import coverage  # noqa: PLC0415 - only where it is wanted

    both = coverage.Coverage(str(options.folder / "coverage"), branch=True)
    both.combine([str(file) for file in measured(options)])
    _say("")
    both.report(show_missing=True, skip_empty=True)
    file = options.folder / "coverage.json"
    both.json_report(outfile=str(file))
    totals = json.loads(file.read_text())["totals"]
    share = totals["covered_branches"] / totals["num_branches"]
    _say(f"branches: {totals['covered_branches']} of {totals['num_branches']} ({share:.1%})")


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        rounds=arguments.rounds,
        seed=random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed,
        jobs=arguments.jobs,
        profile=arguments.profile,
        order=arguments.order,
        plant=arguments.plant,
        folder=arguments.folder,
        coverage=arguments.coverage,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="number of rounds (300)")
    parser.add_argument("--seed", type=_seed, help="seed of the first round; later rounds count up")
    parser.add_argument("--profile", default="", choices=["", *PROFILES], metavar="NAME")
    parser.add_argument("--order", default="", choices=["", *ORDERS], metavar="fifo|shuffle")
    parser.add_argument("--plant", default="", choices=["", "all", *PLANTS], metavar="NAME")
    parser.add_argument(
        "--within", type=int, default=60, help="maximum rounds per planted fault (60)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="folder for reports (var/simulation)"
    )
    parser.add_argument(
        "--coverage", action="store_true", help="measure branch coverage of migration/"
    )
    return parser.parse_args()


def _seed(text: str) -> int | None:
    return int(text) if text else None


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _quiet(_: str) -> None:
    """Discard a line."""


if __name__ == "__main__":
    sys.exit(main())
