"""Registry of the kinds of fault.

A fault is an asynchronous context manager: entering starts the fault, leaving ends it. All its
parameters are drawn from the generator in its `Scene`, so a seed determines them.
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
    """Objects that a fault works on."""

    cluster: Cluster
    rng: random.Random
    marks: History


Apply = Callable[[Scene], AbstractAsyncContextManager[None]]


class Fault(NamedTuple):
    """Kind of fault."""

    name: str
    apply: Apply
    lasts: tuple[float, float]
    """Minimum and maximum duration in seconds."""
    weight: float
    needs: str
    """Requirement: ``root`` (small disks), ``strace``, ``clock`` (patched server), or none."""


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, lasts: tuple[float, float], weight: float = 1.0, needs: str = ""
) -> Callable[[Callable[[Scene], AsyncIterator[None]]], Apply]:
    def register(function: Callable[[Scene], AsyncIterator[None]]) -> Apply:
        apply = asynccontextmanager(function)
        FAULTS[name] = Fault(name, apply, lasts, weight, needs)
        return apply

    return register


def missing(needs: str, *, mounted: bool) -> str:
    """Return why this machine cannot produce a fault that ``needs`` something; empty: it can."""
    if needs == "root" and not mounted:
        return "only root can mount small disks"
    if needs == "strace" and shutil.which("strace") is None:
        return "strace is not installed"
    return ""


async def mostly_up(scene: Scene) -> None:
    """Usually wait until the server serves, but sometimes act while it starts."""
    if scene.rng.random() < 0.75:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                await scene.cluster.supervisor.up.wait()
                await asyncio.sleep(scene.rng.uniform(0.0, 1.0))
