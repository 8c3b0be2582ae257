"""``make chaos``: a campaign of faults against real processes, judged by a history checker.

    python -m tests.chaos [--rounds N] [--seed N] [--jobs N] [--seconds S]
    python -m tests.chaos --plant NAME [--rounds N]      one planted fault, until it is caught
    python -m tests.chaos --planted all [--within N]     all of them, and a table

Exit status 1 if anything went wrong; with planted faults, if one was not caught. What a
failing round leaves is below ``var/chaos``, with the report.
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

from tests.chaos.campaign import Campaign, Options
from tests.chaos.planted import PLANTS
from tests.chaos.report import Totals, planted_table

_FOLDER = Path("var/chaos")


def main() -> int:
    """Run what was asked for."""
    # Templates are made in this process; what is said of them is no news.
    logging.getLogger("sagastore_server").addHandler(logging.NullHandler())
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    options = Options(
        arguments.rounds,
        seed,
        arguments.folder,
        (arguments.plant,),
        arguments.seconds,
        arguments.jobs,
        keep=arguments.keep,
    )
    if arguments.planted:
        return _planted(options, arguments.planted, arguments.within)
    planted = f", planted: {arguments.plant}" if arguments.plant else ""
    _say(f"{options.rounds} rounds from seed {seed}{planted}")
    began = time.monotonic()
    totals = asyncio.run(_run(Campaign(options, _say)))
    _say("")
    _say(totals.text())
    document = totals.as_json() | {"seed": seed, "took": round(time.monotonic() - began, 1)}
    (options.folder / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.folder / "report.txt").write_text(totals.text() + "\n", encoding="utf-8")
    _say(f"\n  {document['took']:,.0f} s in all; report: {options.folder / 'report.json'}")
    return 1 if totals.failed else 0


async def _run(campaign: Campaign) -> Totals:
    """Run it; SIGTERM ends it as Ctrl+C does, and nothing is left behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await campaign.run()


def _planted(options: Options, which: list[str], within: int) -> int:
    """Plant one fault after the other, and see in which round each is caught."""
    names = tuple(PLANTS) if which == ["all"] else tuple(which)
    own = options._replace(
        plants=names, rounds=within, until_caught=True, folder=options.folder / "planted"
    )
    campaign = Campaign(own, _say)
    asyncio.run(_run(campaign))
    found = {name: (*campaign.caught.get(name, (0, [])), campaign.tried[name]) for name in names}
    table = planted_table(found, {name: plant.what for name, plant in PLANTS.items()})
    _say("\n" + table)
    (options.folder / "planted.md").write_text(table + "\n", encoding="utf-8")
    return 0 if len(campaign.caught) == len(names) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="rounds to run (20)")
    parser.add_argument("--seed", type=_seed, help="seed of the first round; the next ones follow")
    parser.add_argument("--jobs", type=int, default=1, help="rounds at a time (1)")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long faults go on")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], metavar="NAME")
    parser.add_argument("--planted", nargs="+", choices=["all", *PLANTS], metavar="NAME")
    parser.add_argument("--within", type=int, default=20, help="rounds for each planted fault (20)")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where reports go (var/chaos)")
    parser.add_argument("--keep", action="store_true", help="keep the history of every round")
    return parser.parse_args()


def _seed(text: str) -> int | None:
    return int(text) if text else None


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
