"""Runner of the specification."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tools.spec.__main__ import chosen, deviation, line
from tools.spec.instances import HOLDING, PLANTED, Instance, as_tla, configuration
from tools.spec.tlc import FailedError, MissingError, Verdict, check, find_jar, parse

HOLDS = """\
Model checking completed. No error has been found.
1043 states generated, 409 distinct states found, 0 states left on queue.
The depth of the complete state graph search is 18.
"""

VIOLATED = """\
Error: Invariant NoLostAck is violated.
Error: The behavior up to this point is:
State 1: <Initial predicate>
/\\ floor = [a |-> 1]

State 2: <BeginWrite line 12, col 3 to line 20, col 9 of module Clients>
/\\ floor = [a |-> 1]

State 3: <Commits line 90, col 3 to line 91, col 9 of module Migration>
/\\ floor = [a |-> 2]

260 states generated, 159 distinct states found, 34 states left on queue.
The depth of the complete state graph search is 14.
"""


def has_tlc() -> str:
    """Return why TLC cannot run; empty if it can."""
    try:
        find_jar()
    except MissingError as exc:
        return str(exc)
    return ""


needs_tlc = pytest.mark.skipif(bool(has_tlc()), reason=has_tlc())


def named(name: str) -> Instance:
    return chosen(quick=False, only=name)[0]


def test_completed_check_has_counts_and_no_violation() -> None:
    verdict = parse(HOLDS, 1.5)
    assert verdict[:6] == (1043, 409, 18, 1.5, "", ())


def test_violation_has_invariant_and_actions_after_the_initial_state() -> None:
    verdict = parse(VIOLATED)
    assert verdict.violated == "NoLostAck"
    assert verdict.steps == ("BeginWrite", "Commits")
    assert (verdict.states, verdict.distinct) == (260, 159)


def test_liveness_violation_is_named_temporal() -> None:
    assert parse("Error: Temporal properties were violated.\n").violated == "temporal"


def test_unexpected_output_is_a_failure() -> None:
    with pytest.raises(FailedError, match="Unknown operator"):
        parse("Parsing file\nUnknown operator: `Foo'.\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), ("a", '"a"'), (frozenset({"b", "a"}), '{"a", "b"}'), (frozenset[str](), "{}")],
)
def test_constants_are_written_as_tla(value: int | str | frozenset[str], text: str) -> None:
    assert as_tla(value) == text


def test_liveness_instances_use_the_fair_specification() -> None:
    assert configuration(named("drains")).startswith("SPECIFICATION FairSpec\n")
    assert configuration(named("phases")).startswith("SPECIFICATION Spec\n")


def test_names_are_unique() -> None:
    names = [instance.name for instance in [*HOLDING, *PLANTED]]
    assert len(names) == len(set(names))


def test_every_planted_mistake_is_part_of_the_quick_run() -> None:
    assert all(instance.quick for instance in PLANTED)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(LookupError, match="unknown instance nothing; choose one of phases"):
        chosen(quick=False, only="nothing")


def test_planted_mistake_without_counterexample_deviates() -> None:
    verdict = parse(HOLDS)
    assert deviation(named("no-drain"), verdict).endswith("found no counterexample")
    assert "FAILED" in line(named("no-drain"), verdict)


def test_violation_of_another_invariant_deviates() -> None:
    assert deviation(named("target-first"), parse(VIOLATED)).endswith("found NoLostAck")
    assert deviation(named("phases"), parse(VIOLATED)) == "FAILED: NoLostAck is violated"
    assert not deviation(named("no-drain"), parse(VIOLATED))


@needs_tlc
def test_tiny_instance_holds() -> None:
    tiny = Instance("tiny", "", {"MaxMoves": 1})
    verdict = check(configuration(tiny))
    assert not deviation(tiny, verdict)
    assert verdict.distinct > 100


@needs_tlc
def test_planted_mistake_fails_with_its_invariant() -> None:
    instance = named("base-before-flush")
    verdict = check(configuration(instance))
    assert verdict.violated == instance.expected == "AppliedIsTrue"
    assert "CommitDualWrite" in verdict.steps


@needs_tlc
def test_misspelt_constant_fails_in_tlc() -> None:
    with pytest.raises(FailedError):
        check(configuration(named("no-drain")).replace("MaxMoves", "MaxMove"))


def test_missing_java_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingError, match=r"^java is not on the PATH; install a Java runtime$"):
        find_jar()


def run_without_java(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.spec", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": ""})


def test_optional_run_without_java_is_skipped() -> None:
    ended = run_without_java("--quick", "--optional")
    assert ended.returncode == 0
    assert ended.stdout.startswith("skipped: the specification was not checked: java is not")


def test_run_without_java_fails() -> None:
    ended = run_without_java("--only", "phases")
    assert ended.returncode == 1
    assert ended.stdout.startswith("error: the specification was not checked: java is not")


def test_completed_check_prints_one_line() -> None:
    verdict = Verdict(1043, 409, 18, 1.5, "", (), "")
    assert line(named("phases"), verdict).split() == [
        *("phases", "1,043", "409", "18", "1.5", "holds")
    ]
