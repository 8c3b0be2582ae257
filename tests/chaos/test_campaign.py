"""Short chaos campaign, with and without a planted fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools.chaos.campaign import Campaign, Options
from tools.chaos.faults import FAULTS
from tools.chaos.plan import PHASES, draw

SECONDS = 3.0
"""Duration of the faults in a round."""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults use /proc and signals")


@pytest.mark.timeout(900)
async def test_short_campaign_finds_no_violation(tmp_path: Path) -> None:
    totals = await Campaign(Options(1, 8, tmp_path, seconds=SECONDS), print).run()
    assert totals.rounds == 1
    assert totals.calls["acknowledged"] > 0
    assert totals.faults
    assert not totals.failed, totals.failed
    assert "Violations in total       0" in totals.text()


@pytest.mark.timeout(900)
async def test_planted_fault_is_caught(tmp_path: Path) -> None:
    plant = "drop-journal-row"
    # From dual-write, backfill and read-postgres; a busy machine may need another round.
    planted = Options(3, 6, tmp_path, plants=(plant,), seconds=SECONDS, until_caught=True)
    totals = await Campaign(planted, print).run()
    assert [one["plant"] for one in totals.failed] == [plant]
    seed = totals.failed[0]["plan"]["seed"]
    folder = tmp_path / plant / f"seed-{seed}"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["wrong"] or verdict["report"]["violations"]
    assert (folder / "history.jsonl").stat().st_size
    assert "<svg" in (folder / "timeline.svg").read_text()


def test_seed_determines_plan() -> None:
    plans = [draw(seed, lambda _: True) for seed in range(40)]
    assert plans == [draw(seed, lambda _: True) for seed in range(40)]
    assert {plan.begins for plan in plans[:5]} == set(PHASES)
    assert {plan.origin for plan in plans[:10]} == {"legacy", "fresh"}
    assert all(0 <= one.at <= plan.seconds for plan in plans for one in plan.faults)


def test_every_fault_occurs_in_some_plan() -> None:
    drawn = {one.name for seed in range(60) for one in draw(seed, lambda _: True).faults}
    assert drawn == FAULTS.keys()


def test_unavailable_fault_is_never_planned() -> None:
    plans = [draw(seed, lambda kind: not kind.needs) for seed in range(20)]
    assert not any(FAULTS[one.name].needs for plan in plans for one in plan.faults)
    patched = [plan for plan in plans if plan.needs_clock and not plan.takes_over]
    assert all(plan.steers and plan.begins is PHASES[0] for plan in patched)
