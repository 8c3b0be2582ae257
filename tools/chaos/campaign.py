"""Campaign: runs rounds one after the other and judges each while the next one runs."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from tools.chaos.profiles import MIGRATION, PROFILES, Bed, opened_bed, profile_of
from tools.chaos.report import Totals
from tools.chaos.verdict import judge

_THREADS = 64
"""Threads mostly wait for processes and use little CPU time."""

ROUNDS = "rounds.jsonl"
"""Results of the rounds, one JSON object per line."""

Say = Callable[[str], None]


class Options(NamedTuple):
    """Options of a campaign."""

    rounds: int
    seed: int
    folder: Path
    plants: tuple[str, ...] = ("",)
    """Faults to plant, one after the other; "" is none."""
    seconds: float = 0.0
    """Duration of the faults in a round, in seconds; 0: drawn from the seed."""
    until_caught: bool = False
    """Whether to stop trying a planted fault after the first round that fails."""
    begins: str = ""
    """Start phase of the rounds; "": any."""
    having: str = ""
    """Part of the name of a fault that each round contains; "": any."""
    keep: bool = False
    """Whether passing rounds keep their histories."""
    porcupine: bool = False
    """Whether to check each history with Porcupine as well."""
    profile: str = MIGRATION
    """Kind of the rounds without a planted fault; a planted fault has its own."""

    def wants(self, plan: Any) -> bool:
        """Return whether to run rounds of this plan."""
        fits = self.begins in {"", plan.begins.label}
        return fits and any(self.having in name for name in ("", *plan.fault_names))


class Campaign:
    def __init__(self, options: Options, say: Say) -> None:
        """Create a campaign; ``say`` receives progress, one line at a time."""
        self._options = options
        self._say = say
        self.totals = Totals()
        self._began = time.monotonic()
        self._caught: set[str] = set()

    async def run(self) -> Totals:
        """Run all rounds and return the totals."""
        options = self._options
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / ROUNDS).unlink(missing_ok=True)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        with _judge_pool() as judges:
            await self._work(judges)
        return self.totals

    def _plans(self, bed: Bed, plants: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Yield planted faults and plans until the number of rounds is reached."""
        options = self._options
        for plant in plants:
            plans = (bed.draw(seed, options.seconds) for seed in count(options.seed))
            for plan in islice(filter(options.wants, plans), options.rounds):
                if options.until_caught and plant in self._caught:
                    break
                yield plant, plan

    async def _work(self, judges: Executor) -> None:
        """Run the rounds of each profile in its environment until there are no more seeds."""
        options = self._options
        for profile in PROFILES:
            plants = tuple(
                one for one in options.plants if profile_of(one, options.profile) == profile
            )
            if plants:
                async with opened_bed(profile) as bed:
                    for name, reason in bed.lacking.items():
                        self._say(f"skipped fault {name!r}: {reason}")
                    await self._run_rounds(bed, plants, judges)

    async def _run_rounds(self, bed: Bed, plants: tuple[str, ...], judges: Executor) -> None:
        """Run rounds, each while the one before is judged."""
        judging: asyncio.Task[None] | None = None
        for plant, plan in self._plans(bed, plants):
            folder = self._options.folder / plant / f"seed-{plan.seed}"
            await asyncio.to_thread(_empty, folder)
            await bed.run(plan, plant, folder)
            if judging is not None:
                await judging
            judging = asyncio.create_task(self._judge(judges, plan, plant, folder))
            if self._options.until_caught:
                await judging
        if judging is not None:
            await judging

    async def _judge(self, judges: Executor, plan: Any, plant: str, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        work = partial(judge, folder, porcupine=self._options.porcupine)
        verdict = await loop.run_in_executor(judges, work)
        self.totals.add(verdict)
        with (self._options.folder / ROUNDS).open("a", encoding="utf-8") as rounds:
            rounds.write(json.dumps(verdict, default=str) + "\n")
        if verdict["failed"]:
            self._caught.add(plant)
        self._print_progress(plan, verdict, folder)
        if not (verdict["failed"] or self._options.keep):
            shutil.rmtree(folder, ignore_errors=True)

    def _print_progress(self, plan: Any, verdict: dict[str, Any], folder: Path) -> None:
        done, rounds = self.totals.rounds, self._options.rounds * len(self._options.plants)
        each = (time.monotonic() - self._began) / done
        left = (rounds - done) * each / 60
        report = verdict["report"]
        how = "FAILED" if verdict["failed"] else "ok"
        self._say(
            f"{done:4}/{rounds}  seed {plan.seed}  {how:6}  {report['operations']:6,} calls  "
            f"{report['acknowledged']:5,} acknowledged  {report['unknown']:4,} unknown  "
            f"{plan.description()}  [{each:.0f} s a round, {left:.0f} min left]"
        )
        if verdict["failed"]:
            for line in reasons(verdict)[:8]:
                self._say(f"      {line}")
            self._say(f"      history, log and plan: {folder}")
            self._say(
                f"      repeat: {_replay_command(plan.seed, verdict['plant'], self._options)}"
            )


def reasons(verdict: dict[str, Any]) -> list[str]:
    """Return what is wrong in a round, one line per finding."""
    found = [f"{one['kind']} {one['id']}: {one['what']}" for one in verdict["report"]["violations"]]
    return [line[:400] for line in [*verdict["wrong"], *found]]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _replay_command(seed: int, planted: str, options: Options) -> str:
    plant = f" PLANT={planted}" if planted else ""
    chosen = [f"--seconds {options.seconds:g}"] if options.seconds else []
    if options.profile != MIGRATION and not planted:
        chosen.append(f"--profile {options.profile}")
    rest = f" CHAOS_ARGS='{' '.join(chosen)}'" if chosen else ""
    return f"make chaos ROUNDS=1 SEED={seed}{plant}{rest}"


def _judge_pool() -> ProcessPoolExecutor:
    # Spawned instead of forked, because this process already has threads.
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
