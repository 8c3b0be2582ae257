"""Memory budget: bytes that requests or answers occupy, in total and by owner."""

from __future__ import annotations

SMALL = 16 * 1024
"""Bytes of a request or answer that counts in total, and not for its owner. An answer of this
size is never refused: refusing it would take as much memory."""


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
        """Count ``size`` bytes for ``owner``; return False if that exceeds a limit.

        `SMALL` sizes count in total only, which takes a third of the time.
        """
        if size <= SMALL:
            if self.used + size > self.limit:
                return False
            self.used += size
            return True
        used = self._used_by.get(owner, 0) + size
        if self.used + size > self.limit or used > self._owner_limit:
            return False
        self.used += size
        self._used_by[owner] = used
        return True

    def add(self, owner: str, size: int) -> None:
        """Count ``size`` bytes for ``owner``, even beyond the limits."""
        self.used += size
        if size > SMALL:
            self._used_by[owner] = self._used_by.get(owner, 0) + size

    def give_back(self, owner: str, size: int) -> None:
        """Return bytes that one `take` or `add` counted."""
        self.used -= size
        if size <= SMALL:
            return
        left = self._used_by[owner] - size
        if left:
            self._used_by[owner] = left
        else:
            del self._used_by[owner]

    def is_full(self, owner: str) -> bool:
        """Tell whether ``owner`` could not take another `SMALL` bytes."""
        used = self._used_by.get(owner, 0)
        return self.used + SMALL > self.limit or used + SMALL > self._owner_limit
