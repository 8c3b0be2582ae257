"""Settings of a round, drawn from its seed before it begins.

Parameters that must not matter (batch sizes, intervals, time-outs) are drawn as well, including
small values, so that rare interleavings become frequent. A profile restricts the draw to cases that
the general one rarely reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

from sagastore_server.migration.tuning import Tuning
from sagastore_server.storage.phase import Phase

ACTIONS: Mapping[str, float] = MappingProxyType(
    {
        "new": 6,
        "save": 20,
        "again": 6,
        "delete": 6,
        "bulk": 3,
        "count": 10,
        "get": 20,
        "batch": 6,
        "list": 6,
        "search": 2,
        "export": 2,
        "quarantine": 0.5,
        "append": 4,
        "session": 3,
        "sessions": 1,
        "rename": 3,
        "file": 8,
    }
)
"""Relative frequency of the clients' actions, unless a profile overrides it."""

_FEW_IDS = MappingProxyType({**ACTIONS, "new": 0.5, "batch": 20})
"""The same with few ids, which are read and written constantly."""

PROFILES = {
    "mixed": "every phase, every fault",
    "begin": "the start of dual write, with a slow disk and callers that disconnect",
    "copy": "the backfill: small batches, rows that are outdated when they are sent",
    "flap": "READ_POSTGRES: outages, fallbacks and returns, failures of reads only",
    "last": "the last step, with faults in the middle of it",
    "restore": "PostgreSQL is set back to an earlier state, with or without lost connections",
    "rival": "the server is frozen, and a copy of its file is served elsewhere",
    "mistakes": "two operators, and starts on the wrong file or the wrong PostgreSQL",
}

_ROTATION = (
    *("mixed", "flap", "mixed", "begin", "last", "mixed", "restore"),
    *("mixed", "copy", "flap", "mixed", "mixed", "last", "mixed"),
    *("rival", "mixed", "flap", "restore", "begin", "rival", "copy"),
    *("mistakes", "mixed"),
)
"""Profiles of consecutive seeds; an odd number, so that each gets both orders."""


class Settings(NamedTuple):
    """Settings of a round."""

    profile: str
    begins: Phase
    """Phase in which clients and faults begin."""
    seconds: float
    """Virtual seconds that clients and faults last."""
    completes: bool
    """Whether the operator may take the last step."""
    clients: int
    actions: Mapping[str, float]
    """Relative frequency of each client action; see ``clients.py``."""
    deadline: float
    """Seconds that a client waits for an answer."""
    rest: float
    """Maximum seconds between two calls of a client."""
    operate_every: float
    """Maximum seconds between two actions of the operator."""
    fault_every: float
    """Maximum seconds between two faults."""
    lossy: float
    """Share of calls whose caller disconnects early."""
    trips: float
    """Share of phase changes that a fault interrupts at a random callback."""
    kills_at_the_end: float
    """Share of last steps in which the server is killed once PostgreSQL is the only store."""
    shadow_share: float
    patience: float
    batch_size: int
    """Batch size of the backfill."""
    old_messages: int
    """Messages in the file before the round."""
    carried: int
    """Quarantined rows, files and extra values in the file, of each kind."""
    restored: bool
    """Whether the file was restored from a backup, according to its contents."""
    postgres_slow: float
    """Permanent slowdown factor of PostgreSQL."""
    disk_slow: float
    """Permanent slowdown factor of SQLite."""
    busy_readers: float
    rows_at_once: int
    lag: float
    """Maximum seconds between reading rows and sending them to PostgreSQL."""
    tuning: Tuning
    operators: int = 1


def profile_of(seed: int) -> str:
    """Return the default profile of a seed."""
    return _ROTATION[seed % len(_ROTATION)]


def draw(seed: int, profile: str) -> Settings:
    """Return the settings of a seed."""
    rng = Random(f"{seed}/settings")
    settings = Settings(
        profile=profile,
        begins=Phase(rng.randrange(1, 5)),
        seconds=rng.choice((1.5, 3.0, 5.0)),
        completes=rng.random() < 0.5,
        clients=3,
        actions=ACTIONS,
        deadline=2.0,
        rest=rng.choice((0.03, 0.1, 0.2)),
        operate_every=rng.choice((0.1, 0.4)),
        fault_every=rng.choice((0.3, 1.0, 3.0)),
        lossy=rng.choice((0.0, 0.02, 0.1)),
        trips=0.4,
        kills_at_the_end=0.2,
        shadow_share=rng.choice((0.0, 0.3, 1.0)),
        patience=rng.choice((0.3, 0.8, 1.5)),
        batch_size=rng.choice((1, 3, 1000)),
        old_messages=rng.choice((0, 5, 30)),
        carried=rng.choice((0, 2)),
        restored=rng.random() < 0.1,
        postgres_slow=1.0,
        disk_slow=1.0,
        busy_readers=rng.choice((0.0, 0.1, 0.3)),
        rows_at_once=rng.choice((3, 5000)),
        lag=0.0,
        tuning=_tuning(rng),
    )
    return _narrowed(settings, rng)


def _tuning(rng: Random) -> Tuning:
    batch = rng.choice((2, 7, 1000))
    return Tuning(
        journal_batch=batch,
        near_entries=max(1, batch // 2),
        gather_seconds=rng.choice((0.0, 0.02, 0.1)),
        return_seconds=rng.choice((0.02, 0.5)),
        return_most=2.0,
        prune_seconds=rng.choice((0.02, 1.0)),
        reconnect_first=rng.choice((0.01, 0.1)),
        reconnect_most=rng.choice((0.2, 2.0)),
        backfill_retry_first=rng.choice((0.05, 0.25)),
        backfill_retry_most=rng.choice((0.5, 5.0)),
        backfill_idle_seconds=rng.choice((0.05, 1.0)),
        verifier_page=rng.choice((2, 500)),
        final_rows=rng.choice((0, 500)),
        caretaker_seconds=rng.choice((0.05, 1.0)),
    )


def _narrowed(settings: Settings, rng: Random) -> Settings:
    """Restrict settings to their profile."""
    phases = Phase(rng.choice((2, 3, 4, 4))), Phase(rng.choice((2, 3, 4, 4, 4)))
    narrowed: dict[str, dict[str, Any]] = {
        "mixed": {},
        "begin": {
            "begins": Phase.SQLITE_ONLY,
            "completes": False,
            "seconds": 1.0,
            "lossy": 0.3,
            "disk_slow": rng.choice((10.0, 50.0)),
            "trips": 0.5,
        },
        "copy": {
            # Copying begins at once, and clients write while rows are copied.
            "begins": Phase(rng.choice((2, 3, 3, 3))),
            "completes": False,
            "operate_every": 1.0,
            "batch_size": rng.choice((2, 5)),
            "old_messages": 40,
            "lag": rng.choice((0.05, 0.2, 0.4)),
            "rest": 0.03,
            "actions": {**ACTIONS, "new": 0.5, "delete": 30, "count": 2},
            "seconds": 3.0,
            "fault_every": rng.choice((1.0, 3.0)),
            "tuning": settings.tuning._replace(gather_seconds=0.0),
            "trips": 0.8,
        },
        "flap": {
            "begins": Phase.READ_POSTGRES,
            "completes": False,
            "rest": rng.choice((0.01, 0.03)),
            "actions": _FEW_IDS,
            "lossy": rng.choice((0.02, 0.1, 0.3)),
            "clients": 5,
            "old_messages": 3,
            "seconds": 3.0,
            "fault_every": 0.3,
            "busy_readers": rng.choice((0.1, 0.3)),
            "disk_slow": rng.choice((1.0, 10.0)),
            "lag": rng.choice((0.02, 0.1, 0.3)),
            "operate_every": 1.0,
            "tuning": settings.tuning._replace(
                return_seconds=0.02, return_most=0.1, reconnect_first=0.01
            ),
        },
        "last": {
            "begins": Phase.READ_POSTGRES,
            "completes": True,
            "seconds": 2.0,
            "lossy": rng.choice((0.02, 0.2)),
            "postgres_slow": rng.choice((1.0, 20.0)),
            "lag": rng.choice((0.0, 0.2)),
            "rest": rng.choice((0.02, 0.1)),
            "trips": 0.6,
            "kills_at_the_end": 0.6,
            "operate_every": 0.1,
        },
        "restore": {
            "begins": phases[0],
            "completes": False,
            "rest": rng.choice((0.03, 0.1)),
            "actions": _FEW_IDS,
            "old_messages": rng.choice((0, 3)),
        },
        "mistakes": {
            "begins": Phase(rng.choice((1, 2, 3, 4))),
            "seconds": 12.0,
            "fault_every": 2.0,
            "carried": 2,
            "operators": 2,
            "tuning": settings.tuning._replace(most_touched=rng.choice((3, 30))),
        },
        "rival": {
            "begins": phases[1],
            "completes": False,
            "seconds": 60.0,
            "rest": 0.01,
            "deadline": 60.0,
            "disk_slow": rng.choice((1.0, 10.0)),
        },
    }
    return settings._replace(**narrowed[settings.profile])
