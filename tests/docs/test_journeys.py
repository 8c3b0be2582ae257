"""The documented journeys work as the pages describe them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.page import commands, masked, matches, steps
from tests.docs.shell import ROOT, Session


class Journey(NamedTuple):
    """A page whose marked blocks are run in a fresh folder."""

    page: str
    ports: tuple[int, ...]
    """Ports on the page, each replaced by a free one."""
    env: dict[str, str] = {}  # noqa: RUF012 - of a class that is not changed
    """Addresses that the page leaves at their defaults."""


DEFAULTS = {
    "SAGASTORE_LISTEN": "127.0.0.1:50051",
    "SAGASTORE_TARGET": "127.0.0.1:50051",
    "SAGASTORE_OPS_LISTEN": "off",
}

JOURNEYS = [
    # Quick start, migration, PostgreSQL.
    Journey("docs/tutorial/first-ten-minutes.md", (50051,), DEFAULTS),
    # Mutual TLS, tokens, metrics, backup and restore.
    Journey("docs/how-to/operations.md", (50651, 9464)),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a fresh folder. PostgreSQL, which root runs as another user, can reach it."""
    with tempfile.TemporaryDirectory(prefix="journey-") as name:
        made = Path(name)
        made.chmod(0o755)
        yield made


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: Path(journey.page).stem)
def test_page_works_as_shown(journey: Journey, folder: Path) -> None:
    found = steps(ROOT / journey.page)
    assert found
    with Session(folder, journey.ports, journey.env) as session:
        differences = [difference for step in found for difference in session.perform(step)]
    assert not differences, "\n\n".join(differences)
