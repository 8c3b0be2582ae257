"""A migration under the application: the same requests in every phase, on both storages."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import ModuleType

from fastapi.testclient import TestClient

from sagastore import Client, Phase
from tests.conftest import ServerFactory
from tests.integrations.arc_storage import dropin, saga_app, sqlite_app
from tests.integrations.scenario import Scenario, legacy
from tests.support.migration_control import ACCEPTED, WRONG

WALK = (
    Phase.SQLITE_ONLY,
    Phase.DUAL_WRITE,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.POSTGRES_ONLY,
)
"""All phases, with a step back."""


def compare_in_every_phase(
    folder: Path, dsn: str, start: ServerFactory, models: ModuleType, scenario: Scenario
) -> None:
    """Serve a copy of the application's file, migrate it, and compare the answers."""
    own = folder / "own.db"
    with TestClient(sqlite_app(own, models)) as client:
        legacy(client)
    served = Path(shutil.copy(own, folder / "memory.db"))
    server = start(sqlite=served, env={"SAGASTORE_POSTGRES": dsn}).start()
    with (
        Client(server.address, timeout=60) as operator,
        TestClient(sqlite_app(own, models)) as before,
        TestClient(saga_app(storage := dropin(server.address, models), models)) as after,
    ):
        for step, phase in enumerate(WALK):
            _go_to(operator, phase)
            name = f"step{step}"
            for found, expected in zip(scenario(after, name), scenario(before, name), strict=True):
                assert found == expected, f"{phase.label}: {found}, expected {expected}"
    asyncio.run(storage.close())


def _go_to(operator: Client, phase: Phase) -> None:
    now = operator.migration.get().phase
    if phase is now:
        return
    if phase > now:
        _until_ready(operator)
    operator.migration.change_phase(phase, accept_quarantine=True)


def _until_ready(operator: Client) -> None:
    for migration in operator.migration.watch():
        reasons = {blocker.reason for blocker in migration.blockers_to_next}
        assert not reasons & WRONG, migration.blockers_to_next
        if reasons <= ACCEPTED:
            return
