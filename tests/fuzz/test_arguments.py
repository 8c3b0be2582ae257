"""Short fuzz campaign of the command lines; ``make fuzz-arguments`` runs the long one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tools.fuzz.argument_mix import CLIENT, SECRET, SERVER, Mix, Places, Vector
from tools.fuzz.arguments import Outcome, complaints


def test_every_argument_vector_ends_as_documented() -> None:
    # In a process of its own: commands configure logging, and gRPC may end a process.
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz.arguments", "--count", "200", "--seed", "ci"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    ended = Counter[str]()
    for line in done.stdout.splitlines():
        words = line.split()
        if words[0] in {CLIENT, SERVER}:
            ended[words[0]] += int(words[2])
    assert ended.total() == 200
    assert ended[CLIENT] > ended[SERVER] > 20


def test_argument_vectors_are_deterministic(tmp_path: Path) -> None:
    places = Places("127.0.0.1:1", tmp_path, ("a",))
    one, other = Mix("seed", places), Mix("seed", places)
    assert [one.make() for _ in range(50)] == [other.make() for _ in range(50)]


def test_checks_find_planted_faults() -> None:
    vector = Vector(CLIENT, ("--json", "list", "s"))
    fine = Outcome(4, "", '{"code": "UNAVAILABLE"}\n')
    assert list(complaints(vector, fine)) == []
    for faulty in (
        fine._replace(status=7),
        fine._replace(stderr="sagastore: no JSON\n"),
        fine._replace(stderr=""),
        fine._replace(stdout=f"password {SECRET}\n"),
        fine._replace(stderr='{"m": "Traceback (most recent call last)"}\n'),
        fine._replace(status=0, stdout='{"saved":0,"unchanged":0,"skipped":0,"rejected":2}\n'),
    ):
        assert list(complaints(vector, faulty)), faulty
