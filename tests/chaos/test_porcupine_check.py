"""Agreement of Porcupine and the Python checker on histories (`make test-go`)."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.strategies import QUICK
from tools.chaos import porcupine_check
from tools.chaos.campaign import Options
from tools.chaos.checker import Report, check
from tools.chaos.history import History, Operation, Outcome
from tools.chaos.history_generator import STEP, HistoryGenerator
from tools.chaos.mutations import (
    MUTATIONS,
    Mutation,
    durable_nowhere,
    export_repeats_message,
    first_storage_out_of_order,
    page_out_of_order,
    sequence_of_two_messages,
)
from tools.chaos.parallel import command, parts
from tools.chaos.porcupine_check import (
    SOURCES,
    PorcupineError,
    PorcupineReport,
    disagreements,
    porcupine_reports,
)
from tools.chaos.values import Shown
from tools.chaos.verdict import judge
from tools.chaos.violations import Kind, violation

RIGHT = 200 if QUICK else 4000
"""Number of correct histories."""
OF_EACH = 15 if QUICK else 250
"""Number of histories per mutation."""
BUILD_SECONDS = 540

LEFT_TO_PYTHON = {
    "foreign_message_in-List",
    "foreign_message_in-Search",
    export_repeats_message.__name__,
    page_out_of_order.__name__,
    first_storage_out_of_order.__name__,
    sequence_of_two_messages.__name__,
    durable_nowhere.__name__,
}
"""Mutations that Porcupine does not detect by design.

It checks each id alone, and the two mutations of sequences change the sequence of an id in all
answers alike: only another id contradicts it.
"""


def name_of(mutate: Mutation) -> str:
    parts = mutate.__qualname__.partition(".")[0], *(mutate.__closure__ or ())
    return "-".join(str(getattr(part, "cell_contents", part)) for part in parts)


def right(seed: int, unknown: float = 0.2, overlap: float = 3.0) -> History:
    return HistoryGenerator(random.Random(seed), ids=3, overlap=overlap).make(40, unknown=unknown)


def mutated(mutate: Mutation) -> list[History]:
    """Return mutated histories."""
    found: list[History] = []
    for seed in range(40 * OF_EACH):
        history = right(seed, overlap=random.Random(seed).choice((0.4, 2.0)))
        if mutate(history, random.Random(seed)):
            found.append(history)
        if len(found) == OF_EACH:
            break
    assert len(found) >= OF_EACH // 2
    return found


@pytest.fixture(scope="session")
def porcupine() -> None:
    """Build the program, or skip the test without Go or the module."""
    if shutil.which("go") is None:
        pytest.skip("needs Go")
    done = subprocess.run(
        ["go", "mod", "download"], cwd=SOURCES, capture_output=True, text=True, check=False
    )
    if done.returncode and "SECURITY ERROR" not in done.stderr:
        pytest.skip(f"needs the module of go.mod: {done.stderr.strip()}")
    porcupine_check.build()


def judge_all(histories: Sequence[History], folder: Path) -> list[tuple[Report, PorcupineReport]]:
    """Check histories with both checkers, which must agree."""
    paths = [folder / f"{number}.jsonl" for number in range(len(histories))]
    for history, path in zip(histories, paths, strict=True):
        history.save(path)
    pairs: list[tuple[Report, PorcupineReport]] = []
    for path, theirs in zip(paths, porcupine_reports(paths), strict=True):
        history = History.load(path)
        report = check(history)
        assert list(disagreements(history, report, theirs)) == [], path.read_text()
        assert not theirs.undecided
        pairs.append((report, theirs))
    return pairs


@pytest.mark.go
@pytest.mark.timeout(BUILD_SECONDS)
def test_go_tests_pass(porcupine: None) -> None:
    for work in ("vet", "test"):
        done = subprocess.run(
            ["go", work, "./..."], cwd=SOURCES, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stdout + done.stderr


@pytest.mark.go
@pytest.mark.timeout(BUILD_SECONDS)
def test_both_checkers_accept_correct_histories(porcupine: None, tmp_path: Path) -> None:
    histories = []
    for seed in range(RIGHT):
        draw = random.Random(seed)
        unknown, overlap = draw.choice((0, 0.3, 0.7)), draw.choice((0.3, 1.0, 3.0, 10.0))
        histories.append(right(seed, unknown, overlap))
    for report, theirs in judge_all(histories, tmp_path):
        assert report.ok
        assert theirs.verdict == "linearizable", str(theirs)


@pytest.mark.go
@pytest.mark.timeout(BUILD_SECONDS)
@pytest.mark.parametrize("mutate", list(MUTATIONS), ids=name_of)
def test_porcupine_rejects_mutation(mutate: Mutation, porcupine: None, tmp_path: Path) -> None:
    for report, theirs in judge_all(mutated(mutate), tmp_path):
        assert report.violations
        if name_of(mutate) not in LEFT_TO_PYTHON:
            assert theirs.verdict == "violation", str(report)


def perturb(history: History, draw: random.Random) -> None:
    """Change a few answers and times at random; the history may stay correct."""
    for operation in draw.sample(history.operations, 3):
        if operation.end is not None and draw.random() < 0.3:
            operation.end += draw.randrange(-STEP, 3 * STEP)
            operation.end = max(operation.end, operation.start)
            continue
        answer = dict(operation.answer)
        for name in ("revision", "stored_revision"):
            if answer.get(name) is not None:
                answer[name] = max(1, answer[name] + draw.choice((-2, -1, 1, 2)))
        if "created" in answer and draw.random() < 0.3:
            answer["created"] = not answer["created"]
        if operation.kind == "BulkSave" and answer:
            answer["saved"], answer["unchanged"] = answer["unchanged"], answer["saved"]
        items = [Shown(*item) for item in answer.get("items", ())]
        if items:
            at = draw.randrange(len(items))
            change = draw.choice((-1, 0, 1))
            items[at] = items[at]._replace(revision=max(1, items[at].revision + change))
            if not change and operation.kind != "Get":
                del items[at]
            answer["items"] = items
        operation.answer = answer


@pytest.mark.go
@pytest.mark.timeout(BUILD_SECONDS)
def test_both_checkers_agree_on_perturbed_answers(porcupine: None, tmp_path: Path) -> None:
    histories = []
    for seed in range(RIGHT):
        draw = random.Random(seed)
        history = right(seed, draw.choice((0, 0.3)), draw.choice((0.3, 1.0, 3.0)))
        perturb(history, draw)
        histories.append(history)
    verdicts = Counter(theirs.verdict for _, theirs in judge_all(histories, tmp_path))
    assert min(verdicts["linearizable"], verdicts["violation"]) > RIGHT / 10, verdicts


def test_mutations_left_to_python_exist() -> None:
    assert {name_of(mutate) for mutate in MUTATIONS} > LEFT_TO_PYTHON


@pytest.mark.go
@pytest.mark.timeout(BUILD_SECONDS)
def test_porcupine_proof_is_minimal(porcupine: None, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lost_write().save(path)
    (theirs,) = porcupine_reports([path], "-html", str(tmp_path / "html"))
    told = theirs.violations["id-0"].splitlines()
    assert [line.split("  ")[-1].strip() for line in told[1:]] == [
        "Save(second [second]) -> ok, revision 2",
        "Get() -> not found",
    ]
    assert (tmp_path / "html" / "id-0.html").stat().st_size


@pytest.mark.go
def test_verdict_includes_porcupine_result(porcupine: None, tmp_path: Path) -> None:
    lost_write().save(tmp_path / "history.jsonl")
    (tmp_path / "round.json").write_text(json.dumps({"wrong": [], "plan": {"seed": 1}}))
    verdict = judge(tmp_path, porcupine=True)
    assert verdict["failed"]
    assert verdict["wrong"] == []
    assert verdict["porcupine"]["verdict"] == "violation"
    assert verdict["porcupine"]["disagreements"] == []


# ---------------------------------------------------------------------- without Go


def lost_write() -> History:
    """Return a history of one id whose second value is lost."""
    history = History()
    value = {"id": "id-0", "timestamp": 0, "session": None, "tags": [], "words": []}
    for number, name in enumerate(("first", "second")):
        args = {"value": value | {"digest": name, "label": name}}
        answer = {"revision": number + 1, "durable_on": ["SQLITE"]}
        at = 20 * number
        history.add(Operation(number, 0, "Save", args, at, at + 10, Outcome.OK, answer))
    gone = Operation(2, 1, "Get", {"id": "id-0"}, 40, 50, Outcome.REFUSED, {}, "NOT_FOUND")
    history.add(gone)
    return history


LINEARIZABLE = PorcupineReport(3, 1, 0.0, "linearizable")


def test_violation_that_porcupine_misses_is_a_disagreement() -> None:
    history = lost_write()
    (line,) = disagreements(history, check(history), LINEARIZABLE)
    assert line == "id-0: the Python checker finds LOST_WRITE, Porcupine finds no violation"


def test_violation_that_only_porcupine_finds_is_a_disagreement() -> None:
    history = right(1)
    theirs = replace(LINEARIZABLE, verdict="violation", violations={"id-1": "…"})
    (line,) = disagreements(history, check(history), theirs)
    assert line == "id-1: Porcupine finds a violation, the Python checker finds none"


def test_undecided_id_is_not_a_disagreement() -> None:
    history = lost_write()
    theirs = replace(LINEARIZABLE, verdict="unknown", undecided=("id-0",))
    assert list(disagreements(history, check(history), theirs)) == []
    report = Report(undecided=[violation(history, Kind.UNDECIDED, "id-0", "", ())])
    theirs = replace(LINEARIZABLE, verdict="violation", violations={"id-0": "…"})
    assert list(disagreements(history, report, theirs)) == []


def test_unchecked_property_is_not_a_disagreement() -> None:
    history = right(2)
    assert durable_nowhere(history, random.Random(2))
    report = check(history)
    assert report.violations
    assert list(disagreements(history, report, LINEARIZABLE)) == []


def test_parallel_parts_run_porcupine(tmp_path: Path) -> None:
    options = Options(4, 1, tmp_path, porcupine=True)
    commands = [command(part) for part in parts(options, 2)]
    assert len(commands) == 2
    assert all("--porcupine" in one for one in commands)
    assert "--porcupine" not in command(options._replace(porcupine=False))


def test_missing_go_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(porcupine_check, "PROGRAM", tmp_path / "porcupine_check")
    with pytest.raises(PorcupineError, match="needs Go, which is not on the PATH") as caught:
        porcupine_check.build()
    assert "\n" not in str(caught.value)


def test_missing_history_is_reported_in_one_line(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tools.chaos.porcupine_check", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no history found")
