"""The application on its own SQLite class and on the drop-in, in every phase of a migration."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tests.conftest import ServerFactory
from tests.integrations import scenario
from tests.integrations.migrated_app import compare_in_every_phase


def test_messages_are_the_same_in_every_phase(
    models: ModuleType, dsn: str, server_process: ServerFactory, tmp_path: Path
) -> None:
    compare_in_every_phase(tmp_path, dsn, server_process, models, scenario.messages)
