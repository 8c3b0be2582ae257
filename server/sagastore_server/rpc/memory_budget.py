"""Memory budget: bytes that requests or answers occupy, in total and by owner."""

from __future__ import annotations

SMALL = 16 * 1024
"""Bytes of an answer that is counted but never refused: refusing it would take as much memory, and
would report a write that was stored as refused."""


class ByteBudget:
    """Counts bytes in use up to a limit. Belongs to one event loop.

    An owner is a caller or, without access control, a source address.
    """

    def __init__(self, limit: int, share: float = 1.0) -> None:
        """Allow ``limit`` bytes in total, and ``share`` (0 to 1) of them to each owner."""
        self.limit = limit
        self.used = 0
        """Bytes in use. Safe to read in any thread."""
        self._owner_limit = int(limit * share)
        self._used_by: dict[str, int] = {}

    def take(self, owner: str, size: int) -> bool:
        """Count ``size`` bytes for ``owner``; return False if that exceeds a limit."""
        used = self._used_by.get(owner, 0) + size
        if self.used + size > self.limit or used > self._owner_limit:
            return False
        self.used += size
        self._used_by[owner] = used
        return True

    def add(self, owner: str, size: int) -> None:
        """Count ``size`` bytes for ``owner``, even beyond the limits."""
        self.used += size
        self._used_by[owner] = self._used_by.get(owner, 0) + size

    def give_back(self, owner: str, size: int) -> None:
        """Return bytes that `take` or `add` counted."""
        self.used -= size
        left = self._used_by[owner] - size
        if left:
            self._used_by[owner] = left
        else:
            del self._used_by[owner]

    def is_full(self, owner: str) -> bool:
        """Tell whether ``owner`` could not take another `SMALL` bytes."""
        used = self._used_by.get(owner, 0)
        return self.used + SMALL > self.limit or used + SMALL > self._owner_limit
