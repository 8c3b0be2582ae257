"""Counts and digests of auxiliary rows, as both stores compute them."""

from __future__ import annotations

from collections.abc import Iterable

from sagastore_server.storage.auxiliary_rows import (
    AuxiliaryTallier,
    Value,
    extra_values,
    quarantine_values,
)
from sagastore_server.storage.model import QuarantinedRow
from sagastore_server.storage.replication import AuxiliaryTally, ExtraValue, Tally


def tally_of(quarantine: Iterable[QuarantinedRow], extras: Iterable[ExtraValue]) -> AuxiliaryTally:
    """Return the tally of rows in any order; ``AuxiliaryTallier`` defines the significant order."""
    return AuxiliaryTally(
        _tally(map(quarantine_values, sorted(quarantine))),
        _tally(map(extra_values, sorted(extras))),
    )


def _tally(rows: Iterable[tuple[Value, ...]]) -> Tally:
    tallier = AuxiliaryTallier()
    tallier.add_all(rows)
    return tallier.tally()
