"""Command line of the fuzzer (``make fuzz``): campaigns against real servers, or a replay.

    python -m tools.fuzz [--count N] [--seed TEXT] [--target all|sqlite|postgres|phases]
    python -m tools.fuzz --replay FILE

Exit status 1 if a check failed. The report and the failing inputs are saved below ``var/fuzz``.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.postgres import fresh_schema
from tools.fuzz import answer_check, fuzz_input, grpc_client, report
from tools.fuzz.campaign import Campaign, Options, send
from tools.fuzz.watched_server import WatchedServer

_FOLDER = Path("var/fuzz")
_SHARES = {"sqlite": 0.6, "postgres": 0.2, "phases": 0.2}


@asynccontextmanager
async def server_for(target: str, folder: Path) -> AsyncIterator[WatchedServer]:
    """Run the server that ``target`` names, with its files in ``folder``."""
    if target == "sqlite":
        server = WatchedServer(folder / "fuzz.db")
        try:
            await asyncio.to_thread(server.start)
            yield server
        finally:
            await asyncio.to_thread(server.close)
        return
    async with fresh_schema() as dsn:
        server = WatchedServer(folder / "fuzz.db", postgres=dsn, both=target == "phases")
        try:
            await asyncio.to_thread(server.start)
            yield server
        finally:
            await asyncio.to_thread(server.close)


async def campaigns(count: int, seed: str, targets: list[str]) -> list[report.Report]:
    """Run a campaign against each of ``targets``; they share ``count`` inputs."""
    reports = []
    whole = sum(_SHARES[target] for target in targets)
    for target in targets:
        share = round(count * _SHARES[target] / whole)
        options = Options(share, f"{seed}-{target}", _FOLDER, warm_up=min(2000, share // 4))
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            async with server_for(target, Path(folder)) as server:
                campaign = Campaign(server, target, options, _say)
                reports.append(await campaign.run(phases=target == "phases"))
        _say(reports[-1].text())
    return reports


async def replay(path: Path, target: str) -> bool:
    """Send one input again; return whether the server answered correctly."""
    one = fuzz_input.load(path)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        async with server_for(target, Path(folder)) as server:
            async with grpc_client.channel(server.address) as channel:
                answers = await send(server.address, channel, one)
            complaints = answer_check.complaints(one, answers)
            _say("\n".join(f"{answer.code.name}: {answer.message}" for answer in answers))
            _say("\n".join(complaints) or "no failure")
            _say("\n".join(server.stderr))
            return not complaints and server.alive


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", default="")
    parser.add_argument("--target", default="all", choices=("all", *_SHARES))
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    if given.replay is not None:
        target = "sqlite" if given.target == "all" else given.target
        return 0 if asyncio.run(replay(given.replay, target)) else 1
    shutil.rmtree(_FOLDER, ignore_errors=True)
    seed = given.seed or secrets.token_hex(4)
    _say(f"seed {seed}")
    targets = list(_SHARES) if given.target == "all" else [given.target]
    reports = asyncio.run(campaigns(given.count, seed, targets))
    report.write(reports, _FOLDER)
    failures = sum(len(one.failures) for one in reports)
    _say(f"{sum(one.inputs for one in reports):,} inputs, {failures} failures; see {_FOLDER}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
