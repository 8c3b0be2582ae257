"""Rounds of the simulation pass, are repeatable, and detect planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sagastore_server.storage.phase import Phase
from tests.simulation.campaign import ROOT
from tests.simulation.plants import NOT_APPLICABLE, PLANTS
from tests.simulation.report import Totals, expected
from tests.simulation.rounds import Job, explain, run
from tests.simulation.settings import PROFILES, draw, profile_of
from tests.simulation.shrink import kind_of
from tools.chaos import plants


def in_another_process(hash_seed: int, *jobs: Job, plant: str = "") -> list[dict[str, Any]]:
    """Run rounds in a separate process; return their results."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.simulation.worker", "--plant", plant],
        input="".join(json.dumps(job._asdict()) + "\n" for job in jobs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("order", ["fifo", "shuffle"])
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_rounds_of_every_profile_pass_in_both_orders(profile: str, order: str) -> None:
    for seed in range(4):
        assert run(Job(seed, profile, order)).violations == ()


def test_round_is_identical_across_hash_seeds() -> None:
    jobs = [Job(seed, profile) for seed, profile in enumerate(PROFILES)]
    here = [run(job).trace for job in jobs]
    for hash_seed in (1, 2):
        there = in_another_process(hash_seed, *jobs)
        assert [(one["digest"], one["steps"]) for one in there] == [one[:2] for one in here]


def test_planted_fault_is_caught_and_shrunk(tmp_path: Path) -> None:
    jobs = [Job(seed, "flap") for seed in range(1, 4)]
    results = in_another_process(1, *jobs, plant="confirm-too-soon")
    failed = next(one for one in results if one["violations"])
    line = json.dumps(
        Job(failed["seed"], "flap")._asdict() | {"explain": str(tmp_path / "round.txt")}
    )
    subprocess.run(
        [sys.executable, "-m", "tests.simulation.worker", "--plant", "confirm-too-soon"],
        input=line + "\n",
        text=True,
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    text = (tmp_path / "round.txt").read_text()
    assert kind_of(text.splitlines()[0]) == kind_of(failed["violations"][0])
    for word in ("source commit", "answered", "VIOLATION", "SQLite: ", "PostgreSQL: "):
        assert word in text


def test_round_without_a_violation_is_not_shrunk(tmp_path: Path) -> None:
    before, after = explain(Job(1), tmp_path / "round.txt")
    assert before == after > 0
    assert not (tmp_path / "round.txt").exists()


def test_failing_round_exits_1_and_prints_repeat_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--rounds", "2", "--seed", "1"]
    options = ["--profile", "flap", "--plant", "claim-both", "--folder", str(tmp_path)]
    result = subprocess.run(
        [*command, *options, "--jobs", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 1, result.stderr
    assert "make simulate ROUNDS=1 SEED=1 PROFILE=flap PLANT=claim-both" in result.stdout
    assert "durable_on is wrong" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == 2


def test_consecutive_seeds_cover_every_profile_in_both_orders() -> None:
    met = {(profile_of(seed), seed % 2) for seed in range(100)}
    assert met == {(profile, order) for profile in PROFILES for order in (0, 1)}


def test_seed_determines_settings() -> None:
    assert draw(7, "mixed") == draw(7, "mixed") != draw(8, "mixed")
    assert {draw(seed, "mixed").begins for seed in range(50)} == set(Phase) - {Phase.POSTGRES_ONLY}


def test_every_campaign_plant_is_used_or_not_applicable() -> None:
    known = {*PLANTS, *NOT_APPLICABLE}
    assert {*plants.PLANTS, *plants.POWER_PLANTS} <= known


def test_report_lists_faults_that_never_occurred() -> None:
    totals = Totals()
    totals.add(run(Job(1)))
    came = {key for key in expected() if totals.counts[f"fault {key[0]} in {key[1]}"]}
    assert set(totals.never()) == set(expected()) - came
    assert "Violations" in totals.text()
