"""The `migrate status` and `migrate quarantine` commands."""

from __future__ import annotations

import json
from contextlib import aclosing

from sagastore import QuarantinedRow
from sagastore.cli import migration_record, records
from sagastore.cli.failures import complain
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings

__all__ = ["quarantine", "status"]


async def status(settings: Settings) -> int:
    """Print the state of the migration."""
    async with settings.client() as client:
        state = await client.migration.get()
    if settings.as_json:
        print_json(records.document(migration_record.facts(state)))
        return 0
    from sagastore.cli import migration_page
    from sagastore.cli.console import screen

    screen().page(migration_page.page(state, settings))
    return 0


async def quarantine(settings: Settings, limit: int) -> int:
    """Print the quarantined rows."""
    rows: list[QuarantinedRow] = []
    more = False
    async with settings.client() as client, aclosing(aiter(client.migration.quarantine())) as found:
        async for row in found:
            if limit and len(rows) == limit:
                more = True
                break
            if settings.as_json:
                print_json(_as_json(row))
            rows.append(row)
    if not settings.as_json:
        _show(rows)
    if more:
        complain(f"{len(rows):,} shown; there are more: --limit N shows N, --limit 0 all")
    return 0


def _as_json(row: QuarantinedRow) -> str:
    """Insert the raw values unchanged."""
    head = records.document(
        {"source_key": row.source_key, "field": row.field, "reason": row.reason}
    )
    return f'{head[:-1]},"row":{row.row.decode()}}}'


def _show(rows: list[QuarantinedRow]) -> None:
    from sagastore.cli.console import screen

    out = screen()
    if not rows:
        out.line("no rows are in quarantine")
        return
    out.table(
        "In quarantine",
        ("source", "id", "reason"),
        ((row.source_key, _id_of(row), row.reason) for row in rows),
    )


def _id_of(row: QuarantinedRow) -> str:
    found = json.loads(row.row).get("id")
    return found if isinstance(found, str) else "-"
