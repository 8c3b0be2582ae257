"""Records the points of ``crash_points.txt``: run as ``python -m`` from the root.

To be done when steps of the migration were added or renamed.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.support.migration_run import EVERY_ATTEMPT, WHEN_IDLE, run_migration
from tests.support.postgres import fresh_schema

LIST = Path(__file__).with_name("crash_points.txt")
RUNS = 3


def main() -> None:
    """Run some migrations without a crash, and list the points that each of them passes."""
    runs = [asyncio.run(_passed()) for _ in range(RUNS)]
    always = {name: min(run[name] for run in runs) for name in runs[0]}
    points = [f"{name}#{n}" for name, count in always.items() for n in _numbers(name, count)]
    LIST.write_text("".join(f"{point}\n" for point in points))


async def _passed() -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        async with fresh_schema() as dsn:
            return (await run_migration(Path(folder), dsn)).passed


def _numbers(name: str, count: int) -> list[int]:
    """Choose the first and the last of so many passings, or one in the middle."""
    if not count or any(step in name for step in WHEN_IDLE):
        return []
    if any(step in name for step in EVERY_ATTEMPT):
        # There is no last one; and none at all may come while writes are held.
        return [] if "-completing/" in name else [min(count, 7)]
    return sorted({1, 2 if count == 3 else 1, count})


if __name__ == "__main__":
    main()
