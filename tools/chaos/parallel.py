"""Parallel campaigns: parts of a campaign in separate processes, and their merged results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.chaos.campaign import ROUNDS, Options

_Process = asyncio.subprocess.Process


def parts(options: Options, jobs: int) -> Iterator[Options]:
    """Split a campaign: by planted fault if there are several, otherwise by rounds."""
    for number in range(jobs):
        folder = options.folder / f"job-{number + 1}"
        if options.until_caught:
            if plants := options.plants[number::jobs]:
                yield options._replace(plants=plants, folder=folder)
            continue
        first, end = (options.rounds * one // jobs for one in (number, number + 1))
        if end > first:
            yield options._replace(rounds=end - first, seed=options.seed + first, folder=folder)


def command(options: Options) -> list[str]:
    """Return the command line of a part."""
    planted = (
        ["--planted", *options.plants, "--within", str(options.rounds)]
        if options.until_caught
        else ["--plant", options.plants[0], "--rounds", str(options.rounds)]
    )
    return [
        *(sys.executable, "-m", "tools.chaos", *planted, "--seed", str(options.seed)),
        *("--seconds", str(options.seconds), "--folder", str(options.folder)),
        *(["--begins", options.begins] if options.begins else []),
        *(["--having", options.having] if options.having else []),
        *("--profile", options.profile),
        *(["--keep"] if options.keep else []),
        *(["--porcupine"] if options.porcupine else []),
    ]


async def run(options: Options, jobs: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run the parts in parallel; return the results of all rounds, ordered by seed."""
    chosen = list(parts(options, jobs))
    async with asyncio.TaskGroup() as group:
        for number, part in enumerate(chosen):
            group.create_task(_run_part(number + 1, part, say))
    verdicts = [verdict for part in chosen for verdict in read(part.folder)]
    return sorted(verdicts, key=lambda verdict: (verdict["plant"], verdict["plan"]["seed"]))


async def _run_part(number: int, part: Options, say: Callable[[str], None]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command(part), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            say(f"[{number}] {line.decode(errors='replace').rstrip()}")
    finally:
        await _end(process)


async def _end(process: _Process) -> None:
    """Stop a part gracefully if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    await process.wait()


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the results of the rounds that a campaign left in ``folder``."""
    try:
        lines = (folder / ROUNDS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
