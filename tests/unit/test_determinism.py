"""What `make lint` forbids in `migration/`, so that a simulated round can be repeated exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_determinism import FOLDER, findings


def test_migration_takes_time_and_chance_from_its_environment() -> None:
    modules = sorted(FOLDER.glob("**/*.py"))
    assert len(modules) > 20
    assert [line for path in modules for line in findings(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "import random as chance",
        "from secrets import token_hex",
        "from uuid import uuid4",
        "def f():\n    from time import monotonic",
        "started = datetime.now(UTC)",
        "now = asyncio.get_running_loop().time()",
        "tasks = set()",
        "tasks: set[str]",
        "ids = {message.id for message in messages}",
        "for one in {first, second}:\n    use(one)",
        "asyncio.gather(*{first, second})",
    ],
)
def test_what_could_differ_from_run_to_run_is_found(code: str, tmp_path: Path) -> None:
    assert len(found_in(code, tmp_path)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "if phase in {Phase.BACKFILL, Phase.READ_POSTGRES}:\n    pass",
        "await asyncio.wait({task}, timeout=1.0)",
        "known = frozenset(rows)",
        "event.set()",
        "at = datetime.fromtimestamp(seconds, UTC)",
        "began = self._clock.monotonic()",
    ],
)
def test_what_is_the_same_in_every_run_is_allowed(code: str, tmp_path: Path) -> None:
    assert found_in(code, tmp_path) == []


def found_in(code: str, folder: Path) -> list[str]:
    module = folder / "module.py"
    # `await` stands in a function, as in the modules that are checked.
    indented = code.replace("\n", "\n    ")
    module.write_text(f"async def example():\n    {indented}\n")
    return list(findings(module))
