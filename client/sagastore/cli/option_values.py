"""Types and parsers of option values."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from sagastore import _json
from sagastore.cli.times import parse_moment, parse_time

if TYPE_CHECKING:
    from sagastore import Consistency, Phase

__all__ = [
    "Durability",
    "OnConflict",
    "Order",
    "PhaseName",
    "complete_consistency",
    "consistency",
    "json_object",
    "moment",
    "point_in_time",
]


class Durability(StrEnum):
    """Values of --durability."""

    primary = "primary"
    both = "both"


class Order(StrEnum):
    """Values of --order."""

    relevance = "relevance"
    newest = "newest"
    oldest = "oldest"


class OnConflict(StrEnum):
    """Values of --on-conflict."""

    replace_ = "replace"  # `replace` is a method of str
    skip = "skip"


class PhaseName(StrEnum):
    """A phase of the migration."""

    sqlite_only = "sqlite-only"
    dual_write = "dual-write"
    backfill = "backfill"
    read_postgres = "read-postgres"
    postgres_only = "postgres-only"

    @property
    def phase(self) -> Phase:
        """The phase as the library's enumeration."""
        from sagastore import Phase

        return Phase.parse(self.value)


def consistency(text: str) -> Consistency:
    """Parse a level of consistency or a position; empty is the latest state.

    Raises:
        typer.BadParameter: The text is neither.
    """
    from sagastore import Consistency, InvalidArgumentError

    try:
        return Consistency(text)
    except InvalidArgumentError as exc:
        raise typer.BadParameter(exc.violations[0].description) from None


def complete_consistency(incomplete: str) -> list[str]:
    """Return the levels that begin with a text, for the completion of the shell."""
    return [name for name in ("latest", "any_replica") if name.startswith(incomplete)]


def point_in_time(text: str) -> datetime:
    """Parse a time.

    Raises:
        typer.BadParameter: The text is not a time.
    """
    try:
        return parse_time(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc).removeprefix("is ")) from None


def moment(text: str) -> datetime:
    """Parse a time or an age.

    Raises:
        typer.BadParameter: The text is neither.
    """
    try:
        return parse_moment(text)
    except (ValueError, OverflowError) as exc:
        raise typer.BadParameter(str(exc).removeprefix("is ")) from None


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        typer.BadParameter: The text is not a JSON object.
    """
    try:
        value = _json.loads_as_written(text)
    except ValueError as exc:
        raise typer.BadParameter(f"it {exc}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter('it is not a JSON object, such as {"turn": 3}')
    return value
