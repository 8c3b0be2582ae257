"""Store watch: the health of the store, for readiness and for gRPC health checks.

A separate module, because a server that forwards its calls begins to watch when it stops that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from sagastore_server.storage.model import StoreHealth
from sagastore_server.telemetry.readiness import Readiness

_INTERVAL = 1.0
"""Seconds between two health checks of the store."""

_log = structlog.get_logger(__name__)


class StoreWatch:
    """Reports the health of the store to readiness and to gRPC health checks."""

    def __init__(
        self,
        health: Callable[[], Awaitable[StoreHealth]],
        set_ready: Callable[[bool], Awaitable[None]],
        readiness: Readiness,
        needs_watching: Callable[[], bool],
    ) -> None:
        """Report what ``health`` returns, while ``needs_watching`` returns True."""
        self._health = health
        self._set_ready = set_ready
        self._readiness = readiness
        self._needs_watching = needs_watching
        self._healthy = True

    async def run(self) -> None:
        """Check the store at intervals until cancelled. A restart continues with the last state."""
        while True:
            await asyncio.sleep(_INTERVAL)
            # A health check counts rows, so it is skipped for a store that stays available.
            if self._needs_watching():
                await self._check()

    async def _check(self) -> None:
        health = await self._health()
        self._readiness.store(health)
        if health.healthy == self._healthy:
            return
        await self._set_ready(health.healthy)
        self._healthy = health.healthy
        if health.healthy:
            _log.info("ready again", store=health.store.value)
        else:
            _log.warning("not ready", store=health.store.value, reason=health.detail)
