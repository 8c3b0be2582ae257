"""Text form of the events of a round, with the final contents of both stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import Message, Page, SaveResult
from tests.simulation.events import Event
from tests.simulation.world import World

_ROW = "{at:>10}  {actor:<12} {what}"
_WIDTH = 160
_SHOWN = 6
"""Maximum number of messages shown per answer."""


def lines(world: World) -> Iterator[str]:
    """Yield a round line by line, from its settings to the final contents of the stores."""
    yield _settings(world)
    yield ""
    yield _ROW.format(at="virtual s", actor="who", what="what")
    for event in world.recorder.events:
        yield _ROW.format(at=f"{event.at:.4f}", actor=event.actor, what=_what(event))[:_WIDTH]
    yield ""
    yield from _stores(world)


def _settings(world: World) -> str:
    settings = world.settings._asdict()
    tuning = settings.pop("tuning")
    shown = [f"{name}={value}" for name, value in settings.items()]
    return f"seed {world.seed}: " + ", ".join([*shown, *_pairs(tuning._asdict())])


def _pairs(facts: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name}={_value(value)}" for name, value in facts.items())


def _what(event: Event) -> str:
    return " ".join([event.kind, *_pairs(event.facts)])


def _value(value: object) -> str:  # noqa: PLR0911 - a table of kinds
    match value:
        case Message():
            return f"{value.id}={value.content}@{value.revision}"
        case Page():
            return _several(value.messages) + ("…" if value.more else "")
        case SaveResult():
            stores = "+".join(store.value for store in value.durable_on)
            return f"revision {value.revision} on {stores}"
        case StorageError():
            return f"{type(value).__name__}: {value}"
        case dict() if all(isinstance(one, Message) for one in value.values()):
            return _several(value.values())
        case float():
            return f"{value:.4f}"
    return str(value)


def _several(messages: Iterable[Message]) -> str:
    all_of_them = list(messages)
    shown = [_value(message) for message in all_of_them[:_SHOWN]]
    rest = f" and {len(all_of_them) - _SHOWN} more" if len(all_of_them) > _SHOWN else ""
    return f"[{' '.join(shown)}{rest}]"


def _stores(world: World) -> Iterator[str]:
    """Yield the final contents of both stores, side by side where they differ."""
    disk, postgres = world.disk, world.postgres
    yield (
        f"SQLite: {disk.state.phase.slug}, epoch {disk.state.epoch}, base {disk.state.base}, "
        f"revision {disk.revision}, {len(disk.messages)} messages, {len(disk.journal)} journal "
        f"entries, pruned up to {disk.pruned}"
    )
    record = postgres.record
    if record is None:
        yield "PostgreSQL: no migration"
        return
    yield (
        f"PostgreSQL: {record.phase.slug}, epoch {record.epoch}, applied {record.applied}, "
        f"{len(postgres.rows)} messages, backfill {record.backfill.state.value}, held by "
        f"{record.holder or 'none'} {record.session}"
    )
    for id in sorted(disk.messages.keys() | postgres.rows.keys()):
        ours, theirs = disk.messages.get(id), postgres.rows.get(id)
        if ours != theirs:
            yield f"  {id}: SQLite {_version(ours)}, PostgreSQL {_version(theirs)}" + (
                f", deleted at {postgres.tombs[id]}" if id in postgres.tombs else ""
            )


def _version(message: Message | None) -> str:
    return "nothing" if message is None else f"{message.content}@{message.revision}"
