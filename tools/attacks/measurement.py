"""Runs one attack against a new server, and judges the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.attacks.attacker import encode
from tools.attacks.beside import Beside, Figures
from tools.attacks.plan import LOG_RATE, RESIDUE, SETTLE, SHED, SLOWDOWN, Attack
from tools.attacks.service import BESIDE, Service

_ROOT = Path(__file__).parents[2]
_IDLE_CALLS = 20
"""Calls of the authenticated caller before an attack, of each kind at least two."""
_LOG_SECONDS = 20.0
"""Shortest period over which the rate of the log is taken: a burst is no flood."""
_OVERTIME = 120.0
"""Seconds after which an attack process that has not ended is killed."""
_POLL = 0.1
_SHORT_SETTLE = 4 * SETTLE
"""Seconds until memory must be released in the short form, which runs on busy machines too."""
_SHORT_PATIENCE = 4.0
"""Factor of the time limits of the callers beside a short attack that takes processor time, which a
slow machine lacks then. A blocked event loop is noticed all the same, by the probes of /livez."""
_LATER_CALLS = 10
"""Calls on the connection of the authenticated caller after the attack."""


@dataclass
class Result:
    """Figures of one attack."""

    attack: Attack
    idle_memory: float = 0.0
    """Megabytes before the attack."""
    growth: float = 0.0
    """Megabytes above ``idle_memory``, at most."""
    residue: float = 0.0
    """Megabytes above ``idle_memory`` that remain after the attack."""
    idle_p99: float = 0.0
    """Seconds."""
    p99: float = 0.0
    """Seconds, during the attack."""
    codes: Counter[str] = field(default_factory=Counter)
    newcomers: Counter[str] = field(default_factory=Counter)
    probes: Counter[str] = field(default_factory=Counter)
    log_rate: float = 0.0
    """Bytes per second that the attack added to the log."""
    sent: dict[str, Any] = field(default_factory=dict)
    """Report of the attack process."""
    complaints: list[str] = field(default_factory=list)
    """What was wrong, one line each; empty if the expectation is met."""

    @property
    def ratio(self) -> float:
        """p99 during the attack to the idle p99."""
        return self.p99 / self.idle_p99 if self.idle_p99 else 0.0


async def measured(attack: Attack, folder: Path, seconds: float | None = None) -> Result:
    """Run ``attack`` against a new server with its files in ``folder``.

    Without ``seconds``, in its short form, without a judgement of the time that calls take.
    """
    short = seconds is None
    service = Service(folder, attack.settings if short else {}, file_limit=attack.file_limit)
    await asyncio.to_thread(service.__enter__)
    try:
        patience = _SHORT_PATIENCE if short and not attack.quiet else 1.0
        async with Beside.running(service, attack.stored, patience) as beside:
            result = await _observed(attack, service, beside, seconds)
        result.complaints += judged(result, timed=not short)
        result.complaints += await _state(attack, service)
    finally:
        await asyncio.to_thread(service.__exit__)
    return result


async def _observed(
    attack: Attack, service: Service, beside: Beside, seconds: float | None
) -> Result:
    result = Result(attack)
    await _idle(beside, 0.0 if seconds is None else min(10.0, seconds))
    result.idle_p99, result.idle_memory = beside.figures.p99, service.memory()
    began, logged = time.monotonic(), len(service.log())
    figures = beside.figures = Figures()
    result.sent = await _attacked(attack, service, seconds, result.complaints)
    took = time.monotonic() - began
    result.log_rate = _attacker_bytes(service.log()[logged:]) / max(took, _LOG_SECONDS)
    # The calls that were in progress count, and a few later ones on the same connection.
    await _calls(figures, sum(figures.codes.values()) + _LATER_CALLS)
    beside.figures = Figures()
    result.growth = figures.peak - result.idle_memory
    result.p99, result.codes = figures.p99, figures.codes
    result.newcomers, result.probes = figures.newcomers, figures.probes
    settle = _SHORT_SETTLE if seconds is None else SETTLE
    result.residue = await _residue(service, result.idle_memory, wait=settle)
    return result


async def _idle(beside: Beside, seconds: float) -> None:
    """Let the server warm up; then measure it idle for ``seconds``, or a number of calls."""
    await _calls(beside.figures, _IDLE_CALLS)
    if seconds:
        beside.figures = Figures()
        await asyncio.sleep(seconds)
        await _calls(beside.figures, 1)


async def _calls(figures: Figures, count: int) -> None:
    """Wait until the authenticated caller has made ``count`` calls."""
    while sum(figures.codes.values()) < count:  # noqa: ASYNC110 - the caller knows no waiter
        await asyncio.sleep(_POLL)


async def _attacked(
    attack: Attack, service: Service, seconds: float | None, complaints: list[str]
) -> dict[str, Any]:
    """Run the attack process; return its report."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.attacks.attacker", attack.name,
        "--size", "short" if seconds is None else "long",
        "--seconds", str(attack.seconds if seconds is None else seconds),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=_ROOT,
    )  # fmt: skip
    given, output = process.stdin, process.stdout
    if given is None or output is None:
        raise RuntimeError("the attack process has no pipes")
    try:
        async with asyncio.timeout(2 * (seconds or attack.seconds) + _OVERTIME):
            given.write(encode(service.target).encode() + b"\n")
            await given.drain()
            if await output.readline() == b"ready\n" and attack.meanwhile is not None:
                complaints += await asyncio.to_thread(attack.meanwhile, service)
                if process.returncode is not None:
                    complaints.append("the attack ended before its check")
                else:
                    process.terminate()
            report = await output.readline()
            status = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if not report:
        complaints.append(f"the attack process ended with status {status} and without a report")
        return {}
    document: dict[str, Any] = json.loads(report)
    return document


def _attacker_bytes(lines: list[str]) -> int:
    """Return the bytes of the lines that are not about the callers beside."""
    return sum(
        len(line.encode()) + 1 for line in lines if not any(f'"{name}"' in line for name in BESIDE)
    )


async def _residue(service: Service, before: float, *, wait: float) -> float:
    """Wait until memory is released; return the megabytes that remain above ``before``."""
    until = time.monotonic() + wait
    while (  # noqa: ASYNC110 - the memory of a process has no event
        left := service.memory() - before
    ) > RESIDUE and time.monotonic() < until:
        await asyncio.sleep(_POLL)
    return left


def judged(result: Result, *, timed: bool) -> list[str]:
    """Compare the figures with the expectation; the p99 counts only if ``timed``."""
    attack = result.attack
    allowed = {"OK", "RESOURCE_EXHAUSTED"}
    found = []
    if result.growth > attack.growth:
        found.append(f"memory grew by {result.growth:.0f} MB (limit {attack.growth:.0f})")
    if result.residue > RESIDUE:
        settle = SETTLE if timed else _SHORT_SETTLE
        found.append(f"{result.residue:.0f} MB remained after {settle:g} s (limit {RESIDUE:g})")
    for who, answers, fine in (
        ("calls of the authenticated caller", result.codes, allowed),
        ("calls on new connections", result.newcomers, allowed),
        ("probes of /livez", result.probes, {"200"}),
    ):
        wrong = {answer: count for answer, count in answers.items() if answer not in fine}
        if wrong:
            found.append(f"{who}: {wrong} of {sum(answers.values())}")
        if not any(answers[one] for one in ("OK", "200")):
            found.append(f"{who}: none succeeded")
    calls = result.codes + result.newcomers
    if calls["RESOURCE_EXHAUSTED"] > SHED * calls.total():
        found.append(
            f"{calls['RESOURCE_EXHAUSTED']} of {calls.total()} calls of others were shed "
            f"(limit {SHED:.0%})"
        )
    if result.log_rate > LOG_RATE:
        found.append(f"the log grew by {result.log_rate:,.0f} bytes/s (limit {LOG_RATE:,.0f})")
    if timed and result.ratio > SLOWDOWN:
        found.append(f"p99 was {result.ratio:.1f} times the idle p99 (limit {SLOWDOWN:g})")
    return found


async def _state(attack: Attack, service: Service) -> list[str]:
    """Check the server after the attack."""
    if not service.alive:
        return ["the server has ended"]
    found = [f"the log contains the token {name!r}" for name in service.secrets_in_log()]
    if attack.afterwards is not None:
        found += await asyncio.to_thread(attack.afterwards, service)
    return found
