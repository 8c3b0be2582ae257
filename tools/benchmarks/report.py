"""Report of a run: the table on the console, and the JSON file."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.messages import source
from tools.benchmarks.results import Row, number

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).parents[2]
_COLOURS = {"met": "green", "missed": "bold red", "shown": "dim", "skipped": "yellow"}


def environment(load: str, postgres: str) -> dict[str, Any]:
    """Return a description of the environment."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgresql": postgres,
        "load": load,
        "messages": source(),
        **{name: version(name) for name in ("grpcio", "uvloop", "asyncpg", "aiosqlite")},
    }


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the table and the notes on its rows."""
    table = Table("BENCH", "what", "median", "min - max", "target", "", title="make bench")
    for column in table.columns[2:5]:
        column.justify = "right"
    for row in rows:
        unit = row.target.unit if row.target else row.value_unit
        low, high = row.spread
        verdict = row.verdict
        table.add_row(
            row.name,
            row.what,
            number(row.median, unit),
            f"{number(low)} - {number(high)}" if row.values else "",
            str(row.target) if row.target else "",
            f"[{_COLOURS[verdict]}]{verdict}[/]",
        )
    console.print(table)
    for row in rows:
        said = [row.failure] if row.failure else []
        # The values of a plot are not rounds of one measurement.
        if row.values or all(len(values) == 1 for values in row.sides.values()):
            said += [_side(name, values, row.unit) for name, values in row.sides.items()]
        console.print(f"[bold]{row.name}[/] {row.what}: {'; '.join([*said, *row.notes])}")


def write(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write all results as JSON."""
    found = {"environment": about, "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _side(name: str, values: Sequence[float], unit: str) -> str:
    if not values:
        return f"{name}: -"
    return f"{name}: {number(statistics.median(values), unit)}"


def _commit() -> str:
    output = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return output.stdout.strip() or "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
