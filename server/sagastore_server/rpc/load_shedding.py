"""How much waits at the door, and how much of it to turn away.

gRPC hands a call over when the event loop asks for the next one, which a loop that is busy
does less often. So under load calls queue in gRPC, where nothing is known of them but their
number; that number is asked for a few times a second. It takes about half as long to refuse
a call as to serve one. Refusing all that is too much would therefore end in refusing only;
refusing a third keeps the server at work, and callers who wait as they are told thin out the
rest. They are told to wait the longer the more they are, so that few enough come back.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import NamedTuple

# The one way to the figures of channelz without its servicer, of which no types are published.
from grpc._cython import cygrpc  # type: ignore[attr-defined]

SAMPLE_EVERY = 0.2
"""Seconds between two looks; each takes 0.2 ms idle, about 1 ms under load: half a percent."""

_MOST = 1 / 3
"""Share of the calls that is refused at most, while there is room inside."""

_RETURN_SHARE = 0.2
"""Calls that come back, as a share of those served, that the wait is made long enough for."""

_SHORTEST, _LONGEST = 0.25, 10.0
"""Seconds that callers are asked to wait."""

_SMOOTHING = 0.3
"""Weight of one look in the rate of calls served: about the last second counts."""


class LoadFigures(NamedTuple):
    """What gRPC has counted since the server was made."""

    started: int
    ended: int


def figures_of_newest_server() -> Callable[[], LoadFigures]:
    """Return what asks gRPC for the figures of the server that was made last."""
    newest = max(int(server["ref"]["serverId"]) for server in _servers(0))

    def figures() -> LoadFigures:
        for server in _servers(newest):
            data = server.get("data", {})
            ended = int(data.get("callsSucceeded", 0)) + int(data.get("callsFailed", 0))
            return LoadFigures(int(data.get("callsStarted", 0)), ended)
        return LoadFigures(0, 0)

    return figures


def _servers(first: int) -> list[dict[str, dict[str, str]]]:
    found: list[dict[str, dict[str, str]]] = json.loads(cygrpc.channelz_get_servers(first))[
        "server"
    ]
    return found


class LoadShedder:
    """Decides which calls are turned away. Belongs to one event loop."""

    def __init__(self, limit: int, figures: Callable[[], LoadFigures]) -> None:
        """Begin to turn calls away when more than ``limit`` wait or are served."""
        self._limit = limit
        self._figures = figures
        self.outstanding = 0
        """Calls that have come in and not ended, when we last looked."""
        self._share = 0.0
        self._wait = _SHORTEST
        self._let_in = 0
        self._rate = 0.0
        """Calls let in a second."""
        self._away = 0.0
        """Those who were refused and have not come back yet, as far as that can be said."""

    def turns_away(self) -> bool:
        """Decide about one call that has come in."""
        if self._share and random.random() < self._share:  # noqa: S311 - not a secret
            return True
        self._let_in += 1
        return False

    def retry_after(self) -> float:
        """Return the seconds after which a call that is refused may come back.

        A different number each time, so that those refused together come back apart.
        """
        self._away += 1
        return self._wait * (0.5 + random.random())  # noqa: S311 - not a secret

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_EVERY)
            now = time.monotonic()
            self.look(now - last)
            last = now

    def look(self, seconds: float) -> None:
        """Take note of how much there is to do, and was done in the ``seconds`` since."""
        started, ended = self._figures()
        self.outstanding = started - ended
        excess = max(0, self.outstanding - self._limit)
        self._share = min(_MOST, excess / (2 * self._limit))
        self._rate += _SMOOTHING * (self._let_in / seconds - self._rate)
        self._let_in = 0
        self._away *= max(0.0, 1 - seconds / self._wait)
        # So long that no more of them come back in a second than can be borne, those
        # included who are to be sent away next.
        bearable = max(1.0, _RETURN_SHARE * self._rate)
        self._wait = min(_LONGEST, max(_SHORTEST, (self._away + excess) / bearable))
