"""Command line of the chaos campaign (``make chaos``): faults against real processes.

    python -m tools.chaos [--rounds N] [--seed N] [--jobs N] [--seconds S]
    python -m tools.chaos --plant NAME [--rounds N]      with one planted fault
    python -m tools.chaos --planted all [--within N]     every planted fault until it is caught
    python -m tools.chaos --porcupine [...]              with a second checker, written in Go
    python -m tools.chaos --profile cluster [...]        three servers on three PostgreSQL nodes

A history checker judges each round. Exit status 1 if a round fails or, with ``--planted``, if a
planted fault is not caught. The report and the files of failing rounds are in ``var/chaos``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sagastore import Phase
from tools.chaos import parallel
from tools.chaos.campaign import Campaign, Options
from tools.chaos.plan import PHASES
from tools.chaos.plants import PLANTS
from tools.chaos.porcupine_check import PorcupineError, build
from tools.chaos.profiles import PROFILES
from tools.chaos.report import Totals, caught, planted_table

_FOLDER = Path("var/chaos")


def main() -> int:
    # Templates are made in this process; their log records are of no interest.
    logging.getLogger("sagastore_server").addHandler(logging.NullHandler())
    arguments = _arguments()
    options = _options(arguments)
    if options.porcupine:
        try:
            build()
        except PorcupineError as exc:
            sys.stderr.write(f"error: {exc}\n")
            return 2
    planted = f", planted: {', '.join(options.plants)}" if any(options.plants) else ""
    _say(f"{options.rounds} rounds from seed {options.seed}{planted}")
    began = time.monotonic()
    verdicts = asyncio.run(_run(options, arguments.jobs))
    took = time.monotonic() - began
    if options.until_caught:
        return _report_plants(options, verdicts)
    totals = Totals()
    for verdict in verdicts:
        totals.add(verdict)
    _say("\n" + totals.text())
    document = totals.as_json() | {"seed": options.seed, "took": round(took, 1)}
    (options.folder / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.folder / "report.txt").write_text(totals.text() + "\n", encoding="utf-8")
    _say(f"\n  {took:,.0f} s total; report:  {options.folder / 'report.json'}")
    return 1 if totals.failed or totals.rounds != options.rounds else 0


async def _run(options: Options, count: int) -> list[dict[str, Any]]:
    """Run the campaign. SIGTERM ends it like Ctrl+C, and every child process is stopped."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if count > 1:
        return await parallel.run(options, count, _say)
    await Campaign(options, _say).run()
    return parallel.read(options.folder)


def _report_plants(options: Options, verdicts: list[dict[str, Any]]) -> int:
    found = {name: caught(name, verdicts) for name in options.plants}
    table = planted_table(found, {name: plant.what for name, plant in PLANTS.items()})
    _say("\n" + table)
    (options.folder / "planted.md").write_text(table + "\n", encoding="utf-8")
    return 0 if all(one.first for one in found.values()) else 1


def _options(arguments: argparse.Namespace) -> Options:
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    options = Options(
        arguments.rounds,
        seed,
        arguments.folder,
        (arguments.plant,),
        arguments.seconds,
        begins=arguments.begins,
        having=arguments.having,
        keep=arguments.keep,
        porcupine=arguments.porcupine,
        profile=arguments.profile,
    )
    if not arguments.planted:
        return options
    names = tuple(PLANTS) if arguments.planted == ["all"] else tuple(arguments.planted)
    return options._replace(plants=names, rounds=arguments.within, until_caught=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="number of rounds (20)")
    parser.add_argument("--seed", type=_seed, help="seed of the first round; later rounds count up")
    parser.add_argument("--jobs", type=int, default=1, help="parallel rounds (1)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="duration of the faults (default: drawn from the seed)",
    )
    parser.add_argument("--plant", default="", choices=["", *PLANTS], metavar="NAME")
    parser.add_argument("--planted", nargs="+", choices=["all", *PLANTS], metavar="NAME")
    parser.add_argument(
        "--within", type=int, default=20, help="maximum rounds per planted fault (20)"
    )
    parser.add_argument("--begins", default="", metavar="PHASE", choices=[*map(_label, PHASES), ""],
                        help="only rounds that start in this phase")  # fmt: skip
    parser.add_argument("--having", default="", metavar="TEXT",
                        help="only rounds with a fault whose name contains this")  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=_FOLDER, help="folder for reports (var/chaos)"
    )
    parser.add_argument("--profile", default=PROFILES[0], choices=PROFILES,
                        help="migration: one server that moves to PostgreSQL; cluster: three "
                        "servers on three PostgreSQL nodes (migration)")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the history of every round")
    parser.add_argument(
        "--porcupine", action="store_true", help="also check each history with Porcupine"
    )
    arguments = parser.parse_args()
    if arguments.jobs > 1 and not arguments.planted and (arguments.begins or arguments.having):
        parser.error("--begins and --having cannot be combined with --jobs")
    return arguments


def _label(phase: Phase) -> str:
    return phase.label


def _seed(text: str) -> int | None:
    return int(text) if text else None


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
