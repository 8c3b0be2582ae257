"""Checks every instance of the specification (``make spec``).

    python -m tools.spec [--quick] [--only NAME] [--workers N] [--counterexample]

Exit status 1 if an instance does not hold, or if a planted mistake is not found.
"""

from __future__ import annotations

import argparse
import sys
import time

from tools.spec.instances import HOLDING, PLANTED, Instance, configuration
from tools.spec.tlc import FailedError, MissingError, Verdict, check, find_jar


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make spec", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a subset that takes about 30 s")
    parser.add_argument("--only", metavar="NAME", help="one instance or planted mistake")
    parser.add_argument("--workers", type=int, default=2, help="threads of TLC (2)")
    parser.add_argument("--counterexample", action="store_true", help="print TLC's states as well")
    parser.add_argument("--optional", action="store_true", help="succeed where TLC is absent")
    return parser.parse_args()


def chosen(*, quick: bool, only: str | None) -> list[Instance]:
    """Return the instances to check.

    Raises:
        LookupError: No instance has that name.
    """
    every = [*HOLDING, *PLANTED]
    if only is not None:
        every = [instance for instance in every if instance.name == only]
        if not every:
            known = ", ".join(instance.name for instance in [*HOLDING, *PLANTED])
            raise LookupError(f"unknown instance {only}; choose one of {known}")
    return [instance for instance in every if instance.quick or not quick or only]


def deviation(instance: Instance, verdict: Verdict) -> str:
    """Return how the verdict differs from the expected one; empty if it does not."""
    expected = "temporal" if instance.properties and instance.expected else instance.expected
    if verdict.violated == expected:
        return ""
    if not instance.expected:
        return f"FAILED: {verdict.violated} is violated"
    found = verdict.violated or "no counterexample"
    return f"FAILED: expected a counterexample to {instance.expected}, found {found}"


def line(instance: Instance, verdict: Verdict) -> str:
    """Return a row of the table."""
    if instance.expected:
        result = f"{instance.expected} fails in {len(verdict.steps)} steps, as expected"
    else:
        result = "holds"
    result = deviation(instance, verdict) or result
    return (
        f"{instance.name:22} {verdict.states:>10,} {verdict.distinct:>10,} {verdict.depth:>5} "
        f"{verdict.seconds:>7.1f}  {result}"
    )


def _run(instances: list[Instance], *, workers: int, counterexample: bool) -> int:
    """Check the instances one after the other; return the exit status."""
    print(f"{'instance':22} {'states':>10} {'distinct':>10} depth seconds  verdict", flush=True)
    failed, began = 0, time.monotonic()
    for instance in instances:
        # With one worker the counterexample is a shortest one, and small runs start sooner.
        verdict = check(configuration(instance), workers=1 if instance.expected else workers)
        print(line(instance, verdict), flush=True)
        failed += bool(deviation(instance, verdict))
        if verdict.steps and (counterexample or deviation(instance, verdict)):
            print(_counterexample(verdict, states=counterexample))
    print(f"{len(instances)} instances, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _counterexample(verdict: Verdict, *, states: bool) -> str:
    if states:
        return verdict.output[verdict.output.index("Error:") :]
    return "    " + " > ".join(verdict.steps)


def main() -> int:
    """Run the command."""
    given = _parsed()
    try:
        find_jar()
        instances = chosen(quick=given.quick, only=given.only)
        return _run(instances, workers=given.workers, counterexample=given.counterexample)
    except MissingError as exc:
        word = "skipped" if given.optional else "error"
        print(f"{word}: the specification was not checked: {exc}")
        return 0 if given.optional else 1
    except (FailedError, LookupError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
