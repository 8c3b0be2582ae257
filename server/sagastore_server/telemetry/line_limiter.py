"""Line limiter: bounds the bytes per second that each source may add to the log.

A source has a credit of bytes. A line is accepted while the credit is positive, and may make it
negative by the length of that line; so over a longer time a source adds no more than its rate.
All sources together have a credit as well, because one machine may have many IPv6 addresses.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import unquote

OTHERS = "other sources"
"""Name for sources that are no longer kept, or not listed."""

_MAX_SOURCES = 10_000
"""Sources kept, as in the rate limiter of calls. The least recently used one is dropped."""
_LISTED = 10
"""Sources that `LineLimiter.take_suppressed` names."""


class Rate(NamedTuple):
    """A rate, and the credit that is saved up while a source adds no lines."""

    bytes_per_second: float
    burst: float
    """Bytes."""


class _Credit:
    __slots__ = ("left", "since", "suppressed")

    def __init__(self, left: float, since: float) -> None:
        self.left = left
        self.since = since
        self.suppressed = 0

    def refill(self, rate: Rate, now: float) -> None:
        self.left = min(rate.burst, self.left + (now - self.since) * rate.bytes_per_second)
        self.since = now


class LineLimiter:
    """Accepts or suppresses lines, and counts the suppressed ones. Safe in any thread."""

    def __init__(
        self, each: Rate, total: Rate, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Allow ``each`` source its rate, and all sources together ``total``."""
        self._each = each
        self._total = total
        self._clock = clock
        self._lock = threading.Lock()
        self._sources: OrderedDict[str, _Credit] = OrderedDict()
        self._all = _Credit(total.burst, clock())
        self._suppressed = 0
        self._suppressed_by_others = 0

    @property
    def suppressed(self) -> int:
        """Lines suppressed since the start."""
        return self._suppressed

    def accept(self, source: str) -> bool:
        """Whether ``source`` may add a line now; if not, the line is counted as suppressed."""
        now = self._clock()
        with self._lock:
            credit = self._credit(source, now)
            self._all.refill(self._total, now)
            if credit.left > 0 and self._all.left > 0:
                return True
            credit.suppressed += 1
            self._suppressed += 1
            return False

    def charge(self, source: str, size: int) -> None:
        """Take the ``size`` of an accepted line, in bytes, from the credit of its source."""
        with self._lock:
            self._credit(source, self._clock()).left -= size
            self._all.left -= size

    def take_suppressed(self) -> list[tuple[str, int]]:
        """Return the sources with suppressed lines and their number, and reset the numbers.

        Names the ten sources with the most lines; the last entry counts those of all others.
        """
        with self._lock:
            found = [(name, one) for name, one in self._sources.items() if one.suppressed]
            found.sort(key=lambda pair: -pair[1].suppressed)
            counts = [(name, one.suppressed) for name, one in found]
            for _, one in found:
                one.suppressed = 0
            others = self._suppressed_by_others + sum(count for _, count in counts[_LISTED:])
            self._suppressed_by_others = 0
        return counts[:_LISTED] + ([(OTHERS, others)] if others else [])

    def _credit(self, source: str, now: float) -> _Credit:
        credit = self._sources.get(source)
        if credit is None:
            credit = self._sources[source] = _Credit(self._each.burst, now)
            if len(self._sources) > _MAX_SOURCES:
                _, dropped = self._sources.popitem(last=False)
                self._suppressed_by_others += dropped.suppressed
        else:
            self._sources.move_to_end(source)
            credit.refill(self._each, now)
        return credit


def shown_peer(peer: str) -> str:
    """Return the address of a client for display: ``127.0.0.1:40530``, ``[::1]:40530``."""
    kind, colon, rest = peer.partition(":")
    return unquote(rest) if colon and kind in {"ipv4", "ipv6"} else peer


def source_of(peer: str) -> str:
    """Return the source that an address belongs to: an IPv4 address, or an IPv6 network of /64.

    A machine usually has all addresses of its /64 network.
    """
    host = shown_peer(peer).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        # For example a UNIX socket, whose clients have no address.
        return host or "unknown"
    if address.version == 4:
        return host
    if (mapped := getattr(address, "ipv4_mapped", None)) is not None:
        return str(mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
