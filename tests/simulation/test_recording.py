"""Rounds of the simulation conform to the specification; planted faults do not."""

from __future__ import annotations

import json

import pytest

from sagastore_server.migration.fallback import Fallback
from sagastore_server.migration.router import Router
from tests.simulation.models.target import ModelTarget
from tests.simulation.recording import record
from tests.simulation.world import World
from tests.spec.test_runner import needs_tlc
from tools.spec.trace import Result, read, report, validate

pytestmark = needs_tlc


def checked(seed: int, profile: str) -> Result:
    """Run a round, and check its trace as if it were read from a file."""
    events = record(World(seed, profile, shuffle=False))
    return validate(read(map(json.dumps, events)))


@pytest.mark.parametrize(
    ("profile", "seed"), [("begin", 2), ("copy", 3), ("flap", 2), ("last", 2), ("restore", 3)]
)
def test_round_conforms_to_specification(profile: str, seed: int) -> None:
    result = checked(seed, profile)
    assert result.accepted, report(profile, result)
    assert result.events > 50


def first_rejected(profile: str, seeds: range) -> Result:
    for seed in seeds:
        result = checked(seed, profile)
        if not result.accepted:
            return result
    raise AssertionError(f"no trace of {profile} {seeds} was rejected")


def kind(result: Result) -> str:
    return "" if result.first_unexplained is None else str(result.first_unexplained["event"])


async def _at_once(*_: object) -> bool:
    return True


async def _now(self: Router) -> None:
    return None


def test_premature_acknowledgement_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fallback, "confirm", _at_once)
    assert kind(first_rejected("flap", range(1, 6))) == "ack"


def test_missing_tombstone_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(self: ModelTarget, server: object, message_id: str, revision: int) -> None:
        self._server.rows.pop(message_id, None)

    monkeypatch.setattr(ModelTarget, "_bury", forgotten)
    assert kind(first_rejected("flap", range(1, 6))) == "apply"


def test_sqlite_answer_ahead_of_postgres_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "_release", _now)
    # The fault shows in every second round; those before the fourth are long, and it does not.
    assert kind(first_rejected("flap", range(4, 21))) == "answer"
