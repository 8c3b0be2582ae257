"""The `stats` command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sagastore import Migration, Phase
from sagastore.cli import migration_record, records
from sagastore.cli.console import Part, Row, screen
from sagastore.cli.migration_page import health
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.commandline.text import counted

__all__ = ["stats"]

_HANG = 14


async def stats(settings: Settings) -> int:
    """Print the numbers of messages, sessions and files, the stores and the phase."""
    async with settings.client() as client:
        state = await client.migration.get()
    if settings.as_json:
        print_json(records.document(_record(state)))
        return 0
    screen().page([Row(name, parts, _HANG) for name, parts in _fields(state)])
    return 0


def _counts(state: Migration) -> dict[str, int | None]:
    """Return the numbers of records of the store that serves reads; None if unknown."""
    found = {store.store: store for store in state.stores}.get(state.reads_from)
    if found is None:
        return dict.fromkeys(("messages", "sessions", "files"))
    return {"messages": found.messages, "sessions": found.sessions, "files": found.files}


def _record(state: Migration) -> dict[str, Any]:
    return {
        **_counts(state),
        "phase": state.phase.label,
        "reads_from": state.reads_from.label,
        "stores": migration_record.facts(state)["stores"],
        "journal_rows": state.journal_rows,
        "quarantined": state.quarantined,
    }


def _fields(state: Migration) -> Iterator[tuple[str, tuple[Part, ...]]]:
    for name, count in _counts(state).items():
        yield name, ("unknown" if count is None else f"{count:,}",)
    yield "phase", (state.phase.label,)
    for store in state.stores:
        yield store.store.label, health(store)
    if state.phase not in {Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY} or state.journal_rows:
        wait = "waits" if state.journal_rows == 1 else "wait"
        yield "journal", (f"{counted(state.journal_rows, 'write')} {wait} for PostgreSQL",)
    if state.quarantined:
        yield "quarantine", (counted(state.quarantined, "row"),)
