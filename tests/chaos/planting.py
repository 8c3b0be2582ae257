"""Registry of planted faults, and what they are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Plant(NamedTuple):
    """A fault that can be planted."""

    name: str
    what: str
    put: Callable[[], None]


PLANTS: dict[str, Plant] = {}


POWER_PLANTS: dict[str, Plant] = {}
"""Those that only a power loss shows; see ``power_loss``."""


def plant(name: str, what: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a fault."""

    def register(put: Callable[[], None]) -> Callable[[], None]:
        PLANTS[name] = Plant(name, what, put)
        return put

    return register


def replace(owner: object, name: str, value: object) -> None:
    """Put ``value`` in place of an attribute that exists."""
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, value)


def changed(statements: dict[str, str], name: str, old: str, new: str) -> None:
    """Change a part of a statement."""
    assert old in statements[name], f"the statement {name} is another one now"
    statements[name] = statements[name].replace(old, new)
