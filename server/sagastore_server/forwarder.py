"""Forwarder: follows the holder of a migration until PostgreSQL is the only store.

It reads the record of the migration in PostgreSQL at intervals, tells `Forwarding` where the holder
is, and reports the result to health checks. If PostgreSQL does not answer, the last known address
stays in use: the holder serves without PostgreSQL, too.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from sagastore_server.config.address import Address
from sagastore_server.interfaces.forwarding import ForwardingState, HolderRecord, HolderRecords
from sagastore_server.rpc.forwarding import Forwarding
from sagastore_server.rpc.holder_connection import Target
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.phase import Phase

LOOK_SECONDS = 0.5
"""Seconds between two reads of the record."""

_log = structlog.get_logger(__name__)


class ReportHealth(Protocol):
    """Reports to health checks; `RpcServer.set_forwarding_health`."""

    def __call__(self, *, answers: bool, serving: bool) -> None:
        """Report whether the holder answers, and whether it is ready."""


class Forwarder:
    """Keeps one `Forwarding` up to date. Belongs to one event loop; `state` is for any thread."""

    def __init__(
        self,
        records: HolderRecords,
        forwarding: Forwarding,
        *,
        forward_to: str | None,
        may_use_plain_text: bool,
    ) -> None:
        """Follow the record that ``records`` reads.

        Args:
            records: The record in PostgreSQL.
            forwarding: Gets the address of the holder.
            forward_to: Address of the holder while PostgreSQL does not know it.
            may_use_plain_text: Whether calls may cross a network: the connection is encrypted, or
                the operator accepts that it is not.

        """
        self._records = records
        self._forwarding = forwarding
        self._forward_to = forward_to
        self._may_use_plain_text = may_use_plain_text
        self._record: HolderRecord | None = None
        self._address = ""
        self._trouble = ""
        self.is_finished = False
        """Whether PostgreSQL is the only store."""

    def state(self) -> ForwardingState | None:
        """Return whether the holder can be reached; None if calls are not forwarded any more."""
        if not self._forwarding.active:
            return None
        phase = None if self._record is None else self._record.phase
        return self._forwarding.state()._replace(phase=phase)

    async def look(self) -> None:
        """Read the record once, and use what has changed."""
        try:
            record = await self._records.read()
        except StorageError as exc:
            self._note_trouble(str(exc))
        else:
            self._note_trouble("")
            self._record = record or self._record
        self.is_finished = self._record is not None and self._record.phase is Phase.POSTGRES_ONLY
        if not self.is_finished:
            self._use(self._record)

    async def follow(self) -> None:
        """Follow the record until PostgreSQL is the only store."""
        while not self.is_finished:
            await self.look()
            if not self.is_finished:
                await asyncio.sleep(LOOK_SECONDS)
        await self._records.close()

    async def report(self, report: ReportHealth) -> None:
        """Report the state of the holder, and log its changes, until calls are not forwarded."""
        shown: ForwardingState | None = None
        while (state := self.state()) is not None:
            if state != shown:
                report(answers=self._forwarding.answers, serving=state.is_serving)
                _log_change(state, shown)
            shown = state
            await self._forwarding.changed(LOOK_SECONDS)

    async def close(self) -> None:
        """Disconnect from PostgreSQL."""
        await self._records.close()

    def _note_trouble(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("migration record not read", reason=trouble, holder=self._address)
        self._trouble = trouble

    def _use(self, record: HolderRecord | None) -> None:
        """Tell the address of the holder.

        In SQLITE_ONLY the holder does not use PostgreSQL, and the address there may be an old one.
        """
        known = record.address if record is not None else ""
        is_known_there = record is not None and record.phase.journals
        first, second = (known, self._forward_to) if is_known_there else (self._forward_to, known)
        address = first or second or self._address
        if not address:
            self._forwarding.set_target(None, self._why_unknown(record))
            return
        self._address = address
        if not self._may_use_plain_text and not Address.parse(address).is_loopback:
            self._forwarding.set_target(
                None,
                f"the server with the SQLite file ({address}) is on another machine, and calls "
                "would cross the network unencrypted; set forward_ca, or accept it with "
                "allow_insecure",
            )
            return
        store_id = record.store_id if record is not None else ""
        self._forwarding.set_target(Target(address, store_id))

    def _why_unknown(self, record: HolderRecord | None) -> str:
        if self._trouble:
            return f"PostgreSQL must name the server with the SQLite file, but: {self._trouble}"
        if record is None:
            return (
                "there is no migration to this database yet; set forward_to to the address of the "
                "server with the SQLite file, or wait until it is in dual-write"
            )
        return (
            "the server with the SQLite file has not given its address; set forward_to, or start "
            "it with this version"
        )


def _log_change(state: ForwardingState, before: ForwardingState | None) -> None:
    phase = "unknown" if state.phase is None else state.phase.slug
    if state.is_serving:
        _log.info("forwarding", to=state.holder, phase=phase)
    elif state.detail and (before is None or before.is_serving or before.detail != state.detail):
        _log.warning("holder not available", holder=state.holder, reason=state.detail)
