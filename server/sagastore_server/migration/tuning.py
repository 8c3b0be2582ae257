"""Batch sizes and intervals of a migration: speed depends on them, correctness does not.

The simulation (`tests/simulation`) draws every one of them at random, to see that it does
not. Limits that decide what is promised (how long a fence lasts, how long a lease is waited
for) are not here but in the modules that keep the promise.
"""

from __future__ import annotations

from typing import NamedTuple


class Tuning(NamedTuple):
    """Defaults for a local PostgreSQL; docs/explanation/performance.md has the measurements."""

    journal_batch: int = 1000
    """Journal entries applied in one transaction at most."""
    near_entries: int = 500
    """Entries per batch below which the end of the journal counts as near: what the target
    applies in a few hundredths of a second."""
    gather_seconds: float = 0.1
    """Seconds for which changes are collected while no write waits for the target: a
    transaction costs the same for a few changes as for fifty."""
    return_seconds: float = 0.5
    return_most: float = 30.0
    """Seconds between attempts to make the target current again after a fallback: doubled from
    the first value up to the second, since each attempt holds all writes. A target that stays
    current for `return_most` starts with the first value again."""
    prune_seconds: float = 1.0
    """Seconds between two removals of journal entries that the target has confirmed."""
    reconnect_first: float = 0.1
    reconnect_most: float = 2.0
    """Seconds between attempts to reach an unavailable target: doubled from the first value
    up to the second."""
    backfill_retry_first: float = 0.25
    backfill_retry_most: float = 5.0
    """The same between attempts of a backfill step that failed."""
    backfill_idle_seconds: float = 1.0
    """Seconds between two looks of an idle backfill for work, if no change wakes it."""
    verifier_page: int = 500
    """Rows that the verifier reads from each store at once, and ids that it puts back into
    the journal at once."""
    final_rows: int = 500
    """Changed rows that may be left to compare while writes are held in the last step."""
    most_touched: int = 200_000
    """Ids of changed rows that are remembered for the last comparison; beyond, all rows are
    compared once more."""
    caretaker_seconds: float = 1.0
    """Seconds between two checks whether a complete copy still needs its verification."""


DEFAULT_TUNING = Tuning()
