"""Shares of the limits for worker processes."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sagastore_server.config.settings import Settings, SettingsError, load
from sagastore_server.config.worker_share import share_of

POSTGRES = "postgresql://localhost/sagastore"
LIMITS = (
    "postgres_pool_min",
    "postgres_pool_max",
    "request_memory",
    "answer_memory",
    "max_calls",
    "max_streams",
    "max_connections",
    "caller_rate",
)
MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@given(
    workers=st.integers(2, 64),
    calls=st.integers(1, 100_000),
    pool=st.integers(5, 1000),
    memory=st.integers(64, 4096),
    rate=st.floats(0, 1_000_000),
)
def test_parts_of_all_workers_never_exceed_a_limit(
    workers: int, calls: int, pool: int, memory: int, rate: float
) -> None:
    given_settings = {
        "workers": workers,
        "max_calls": calls,
        "postgres_pool_max": pool,
        "request_memory": memory * MIB,
        "caller_rate": rate,
    }
    try:
        settings = Settings(postgres=POSTGRES, **given_settings)  # type: ignore[arg-type]
    except ValidationError:
        enough = calls >= workers and pool >= 2 * workers and memory >= 32 * workers
        assert not enough or workers > 8  # answer_memory suffices for 8, max_streams for 64.
        return
    part = share_of(settings)
    for name in LIMITS:
        assert getattr(part, name) * workers <= getattr(settings, name) * (1 + 1e-12)
    assert part.postgres_pool_max >= 2
    assert part.request_memory >= part.max_request_bytes
    assert min(part.max_calls, part.max_streams, part.max_connections) >= 1
    assert part.postgres_writers == settings.postgres_writers
    assert part.ops_listen == "off"


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        ({}, "workers: must be 1 with a SQLite file"),
        ({"postgres": POSTGRES, "sqlite": "a.db"}, "workers: must be 1 with sqlite"),
        ({"postgres": POSTGRES, "forward": "true"}, "workers: must be 1 with forward"),
        ({"postgres": POSTGRES, "postgres_pool_max": "7"}, "postgres_pool_max: 7 is too small"),
        ({"postgres": POSTGRES, "max_streams": "3"}, "max_streams: 3 is too small"),
        ({"postgres": POSTGRES, "request_memory": str(64 * MIB)}, "request_memory: 67108864 is"),
    ],
)
def test_settings_that_do_not_fit_are_refused(others: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load(None, workers="4", **others)
