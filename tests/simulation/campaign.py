"""Campaign of rounds on several worker processes; a sample of them is repeated for comparison."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.simulation.report import Totals
from tests.simulation.rounds import Job, Result, result_from

REPLAY_EVERY = 25
"""One round in so many is repeated in another process and must be identical."""

NOT_SIMULATED = "*/migration/alone.py"
"""Service with one store; it has no migration code."""

REPORT_EVERY = 10.0
"""Seconds between two progress lines."""

ROOT = Path(__file__).parents[2]
_LINE_BYTES = 1 << 24

Say = Callable[[str], None]


class Options(NamedTuple):
    """Options of a campaign."""

    rounds: int
    seed: int
    jobs: int
    profile: str = ""
    order: str = ""
    plant: str = ""
    folder: Path = Path("var/simulation")
    until_caught: bool = False
    """Whether to stop after the first round that fails."""
    coverage: bool = False
    explain: int = 3
    """Number of failing rounds to shrink and describe in full."""


class Worker:
    """Worker process that runs one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Use a started process."""
        self._process = process
        self._turn = asyncio.Lock()

    async def ask(self, job: Job, **options: str) -> Any:
        """Run a job.

        Raises:
            RuntimeError: The process has ended.
        """
        async with self._turn:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            line = json.dumps(job._asdict() | options) + "\n"
            self._process.stdin.write(line.encode())
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended in the round of seed {job.seed}; see above")
        return json.loads(answer)

    async def end(self) -> None:
        """End the worker gracefully."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@contextlib.asynccontextmanager
async def workers(options: Options) -> AsyncIterator[list[Worker]]:
    """Start worker processes for the duration of the context."""
    started: list[asyncio.subprocess.Process] = []
    try:
        for number in range(options.jobs):
            # One after the other, so that a failed start leaves no unknown process.
            started += [await _start(options, number)]
        those = [Worker(process) for process in started]
        yield those
        await asyncio.gather(*(worker.end() for worker in those))
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _start(options: Options, number: int) -> asyncio.subprocess.Process:
    command = [sys.executable]
    if options.coverage:
        # Measured from the first import, because module-level code counts as well.
        data = coverage_file(options.folder, number)
        command += ["-m", "coverage", "run", "--branch", f"--data-file={data}"]
        command += ["--source=sagastore_server.migration", f"--omit={NOT_SIMULATED}"]
    command += ["-m", "tests.simulation.worker", "--plant", options.plant]
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": str(number + 1)},
        limit=_LINE_BYTES,
    )


def coverage_file(folder: Path, number: int) -> Path:
    """Return the coverage file of a worker."""
    return folder.resolve() / f"coverage.{number}"


class Campaign:
    """Runs rounds and adds up their results."""

    def __init__(self, options: Options, say: Say) -> None:
        """Create a campaign; ``say`` receives progress, one line at a time."""
        self._options = options
        self._say = say
        self.totals = Totals()
        self._failed: deque[Job] = deque()
        self._caught = False
        self._began = time.monotonic()
        self._reported_at = self._began

    async def run(self) -> Totals:
        self._options.folder.mkdir(parents=True, exist_ok=True)
        async with workers(self._options) as those:
            queue = iter(self._jobs())
            await asyncio.gather(*(self._work(those, at, queue) for at in range(len(those))))
            await self._explain(those[0])
        return self.totals

    def _jobs(self) -> Iterator[Job]:
        options = self._options
        for seed in range(options.seed, options.seed + options.rounds):
            if options.until_caught and self._caught:
                return
            yield Job(seed, options.profile, options.order)

    async def _work(self, those: list[Worker], at: int, queue: Iterator[Job]) -> None:
        """Run jobs from the queue on one worker until the queue is empty."""
        for job in queue:
            result = result_from(await those[at].ask(job))
            self._add(job, result)
            if len(those) > 1 and job.seed % REPLAY_EVERY == 0:
                await self._replay(those[(at + 1) % len(those)], job, result)

    async def _replay(self, other: Worker, job: Job, result: Result) -> None:
        again = result_from(await other.ask(job))
        self.totals.replayed += 1
        self.totals.cpu += again.cpu
        if again.trace != result.trace:
            self.totals.not_replayed.append(job.seed)
            self._say(
                f"seed {job.seed}: the repetition in another process differs: NOT DETERMINISTIC"
            )

    def _add(self, job: Job, result: Result) -> None:
        self.totals.add(result)
        if result.violations:
            self._caught = True
            self._failed.append(job)
            self._say(f"seed {job.seed} ({result.profile}): {result.violations[0][:300]}")
        now = time.monotonic()
        if now - self._reported_at >= REPORT_EVERY:
            self._reported_at = now
            self._say(self.totals.progress(self._options.rounds, now - self._began))

    async def _explain(self, worker: Worker) -> None:
        """Shrink some failing rounds and print how to repeat them."""
        for number, job in enumerate(self._failed):
            self._say(f"repeat: {self.replay_line(job)}")
            if number < self._options.explain:
                file = self._options.folder / f"seed-{job.seed}.txt"
                before, after = await worker.ask(job, explain=str(file))
                self._say(f"  events, reduced to {after} of {before} turns: {file}")

    def replay_line(self, job: Job) -> str:
        """Return the command that repeats a round."""
        given = {"PROFILE": job.profile, "ORDER": job.order, "PLANT": self._options.plant}
        more = "".join(f" {name}={value}" for name, value in given.items() if value)
        return f"make simulate ROUNDS=1 SEED={job.seed}{more}"


def measured(options: Options) -> Iterable[Path]:
    """Return the coverage files of the workers."""
    return [coverage_file(options.folder, number) for number in range(options.jobs)]
