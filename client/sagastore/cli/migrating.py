"""What `sagastore migrate` does."""

from __future__ import annotations

import json
from contextlib import aclosing

from sagastore import Migration, QuarantinedRow
from sagastore.cli import records
from sagastore.cli.failures import complain
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings

__all__ = ["quarantine", "status"]


async def status(settings: Settings) -> int:
    """Print where the migration stands."""
    async with settings.client() as client:
        state = await client.migration.get()
    if settings.as_json:
        print_json(records.document(_facts(state)))
        return 0
    from sagastore.cli.console import screen

    out = screen()
    out.line("phase       ", (state.phase.label, "bold"), f" (epoch {state.epoch})")
    for store in state.stores:
        health = ("healthy", "green") if store.healthy else (store.detail, "red")
        held = "" if store.messages is None else f", {store.messages:,} messages"
        out.line(f"{store.store.label:<12}", health, held)
    out.line("quarantine  ", f"{state.quarantined:,} rows")
    for blocker in state.blockers_to_next:
        out.line(("blocked by  ", "yellow"), f"{blocker.reason}: {blocker.detail}")
    return 0


def _facts(state: Migration) -> dict[str, object]:
    return {
        "phase": state.phase.label,
        "epoch": state.epoch,
        "stores": [
            {
                "store": store.store.label,
                "healthy": store.healthy,
                "detail": store.detail,
                "messages": store.messages,
                "schema_version": store.schema_version,
            }
            for store in state.stores
        ],
        "quarantined": state.quarantined,
        "blockers_to_next": [
            {"reason": blocker.reason, "detail": blocker.detail}
            for blocker in state.blockers_to_next
        ],
    }


async def quarantine(settings: Settings, limit: int) -> int:
    """Print the rows in quarantine."""
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
    """Splice the raw values in as the server spells them."""
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
