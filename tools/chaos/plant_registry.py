"""Registry of planted faults, and the helpers to write them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple


class Plant(NamedTuple):
    """Planted fault."""

    name: str
    what: str
    put: Callable[[], None]
    profile: str = "migration"
    """Kind of the rounds that can catch it (``profiles``)."""


PLANTS: dict[str, Plant] = {}


POWER_PLANTS: dict[str, Plant] = {}
"""Planted faults that only a power loss reveals; see ``power_loss``."""


def plant(
    name: str, what: str, profile: str = "migration"
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a planted fault."""

    def register(put: Callable[[], None]) -> Callable[[], None]:
        PLANTS[name] = Plant(name, what, put, profile)
        return put

    return register


def replace(owner: object, name: str, value: object) -> None:
    """Replace an existing attribute; ``value`` must accept every call that the original accepts."""
    assert hasattr(owner, name), f"{owner} no longer has {name}"
    before = getattr(owner, name)
    if inspect.isfunction(before) and inspect.isfunction(value):
        missing = _not_taken(inspect.signature(value), inspect.signature(before))
        assert not missing, f"{owner}.{name} takes {missing}, and its patch does not"
    setattr(owner, name, value)


def _not_taken(patch: inspect.Signature, original: inspect.Signature) -> set[str]:
    """Return the names of parameters that the original accepts and the patch does not."""
    kinds = {one.kind for one in patch.parameters.values()}
    any_number = inspect.Parameter.VAR_POSITIONAL in kinds
    any_name = any_number or inspect.Parameter.VAR_KEYWORD in kinds
    return set() if any_name else original.parameters.keys() - patch.parameters.keys()


def changed(statements: dict[str, str], name: str, old: str, new: str) -> None:
    """Change a part of an SQL statement."""
    assert old in statements[name], f"the statement {name} no longer contains {old!r}"
    statements[name] = statements[name].replace(old, new)
