"""Watches and steers a migration, blocking."""

from __future__ import annotations

from collections.abc import Iterator

from sagastore._async_migration import (
    CHANGE_TIMEOUT,
    VERIFY_TIMEOUT,
    WATCH_TIMEOUT,
    AsyncMigrationClient,
)
from sagastore._enums import Phase
from sagastore._migration_model import Migration, QuarantinedRow, VerifyProgress
from sagastore._paging import Pager
from sagastore._portal import Portal

__all__ = ["MigrationClient"]


class MigrationClient:
    """The part of `Client` for operators: as `AsyncMigrationClient`, but blocking."""

    def __init__(self, client: AsyncMigrationClient, portal: Portal) -> None:
        self._async = client
        self._portal = portal

    def get(self, *, timeout: float | None = None) -> Migration:
        """Tell where the migration stands; see `AsyncMigrationClient.get`."""
        return self._portal.run(self._async.get(timeout=timeout))

    def watch(self, *, timeout: float = WATCH_TIMEOUT) -> Iterator[Migration]:
        """Yield where the migration stands, on every change and each second.

        See `AsyncMigrationClient.watch`.
        """
        return self._portal.iterate(self._async.watch(timeout=timeout))

    def change_phase(
        self,
        phase: Phase,
        *,
        dry_run: bool = False,
        accept_quarantine: bool = False,
        timeout: float = CHANGE_TIMEOUT,
    ) -> Migration:
        """Move to the next phase, or one back; see `AsyncMigrationClient.change_phase`."""
        return self._portal.run(
            self._async.change_phase(
                phase, dry_run=dry_run, accept_quarantine=accept_quarantine, timeout=timeout
            )
        )

    def control_backfill(
        self,
        *,
        paused: bool | None = None,
        batch_size: int | None = None,
        max_rows_per_second: int | None = None,
        timeout: float | None = None,
    ) -> Migration:
        """Pause, resume or throttle the backfill.

        See `AsyncMigrationClient.control_backfill`.
        """
        return self._portal.run(
            self._async.control_backfill(
                paused=paused,
                batch_size=batch_size,
                max_rows_per_second=max_rows_per_second,
                timeout=timeout,
            )
        )

    def verify(
        self, *, repair: bool = False, timeout: float = VERIFY_TIMEOUT
    ) -> Iterator[VerifyProgress]:
        """Compare the two stores, yielding progress; see `AsyncMigrationClient.verify`."""
        return self._portal.iterate(self._async.verify(repair=repair, timeout=timeout))

    def quarantine(
        self, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> Pager[QuarantinedRow]:
        """List the rows that no message can represent.

        See `AsyncMigrationClient.quarantine`.
        """
        pager = self._async.quarantine(page_size=page_size, page_token=page_token, timeout=timeout)
        return Pager(lambda token: self._portal.run(pager.page(token)))
