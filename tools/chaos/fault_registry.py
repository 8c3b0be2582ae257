"""Registry of the kinds of fault.

A fault is an asynchronous context: entering begins it, leaving ends it. What it does in
detail is drawn from the generator that it is given, so a seed tells all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

from tools.chaos.cluster import Cluster
from tools.chaos.history import History


class Scene(NamedTuple):
    """What a fault may use."""

    cluster: Cluster
    rng: random.Random
    marks: History


Apply = Callable[[Scene], AbstractAsyncContextManager[None]]


class Fault(NamedTuple):
    """A kind of fault."""

    name: str
    apply: Apply
    lasts: tuple[float, float]
    """Seconds, at least and at most."""
    weight: float
    needs: str
    """``root``: disks of its own; ``strace``; ``clock``; or nothing."""


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, lasts: tuple[float, float], weight: float = 1.0, needs: str = ""
) -> Callable[[Callable[[Scene], AsyncIterator[None]]], Apply]:
    """Register a kind of fault."""

    def register(function: Callable[[Scene], AsyncIterator[None]]) -> Apply:
        apply = asynccontextmanager(function)
        FAULTS[name] = Fault(name, apply, lasts, weight, needs)
        return apply

    return register


def missing(needs: str, *, mounted: bool) -> str:
    """Say why a fault that ``needs`` something cannot be had here; empty: it can."""
    if needs == "root" and not mounted:
        return "only root can mount small disks"
    if needs == "strace" and shutil.which("strace") is None:
        return "strace is not installed"
    return ""


async def mostly_up(scene: Scene) -> None:
    """Wait for a server that serves, as a rule; now and then hurt one that starts."""
    if scene.rng.random() < 0.75:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                await scene.cluster.supervisor.up.wait()
                await asyncio.sleep(scene.rng.uniform(0.0, 1.0))
