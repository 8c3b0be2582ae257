"""Compatibility of this server with the schema of its database, which newer servers may upgrade.

An upgrade records the oldest server that may use the new schema (``compatible_from``). Every
transaction that changes rows reads the highest record in the statement that takes its locks, at no
further round trip. An upgrade that excludes servers first locks the table of messages against
writers, so no excluded server commits a change after it. Servers of any version may still record a
new timeline (``timeline``).
"""

from __future__ import annotations

import logging

from sagastore_server.storage.errors import OutdatedServerError

_log = logging.getLogger(__name__)


class Compatibility:
    """Whether this server may write to its database. Belongs to one event loop."""

    def __init__(self, supported: int) -> None:
        """Support schemas whose ``compatible_from`` is at most ``supported``."""
        self._supported = supported
        self.error: OutdatedServerError | None = None
        """Why this server must not write; None if it may."""

    def note(self, compatible_from: int | None) -> None:
        """Record the highest ``compatible_from`` of the schema; None: there is no schema.

        A change is logged once. The value decreases if the database was restored from a backup.
        """
        former = self.error
        if compatible_from is None or compatible_from <= self._supported:
            self.error = None
        elif former is None:
            self.error = OutdatedServerError(compatible_from, self._supported)
            _log.error("%s", self.error)

    def check(self, compatible_from: int | None) -> None:
        """Record it as `note`, in a transaction that is going to write.

        Raises:
            OutdatedServerError: This server must not write; roll back.

        """
        self.note(compatible_from)
        if self.error is not None:
            raise OutdatedServerError(*self.error.versions)
