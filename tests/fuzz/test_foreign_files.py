"""Short run of the fuzzer of foreign files; `python -m tools.fuzz.foreign_files` runs longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.fuzz.foreign_files import run
from tools.fuzz.foreign_inputs import made

COUNT = 100


@pytest.mark.timeout(600)
def test_commands_answer_every_file(tmp_path: Path) -> None:
    statuses, broken = run(COUNT, "ci", tmp_path / "failures")
    assert broken == []
    assert statuses.total() == COUNT
    # The seed has files that both commands read, and files that both refuse.
    assert statuses["database: inspect 0, import 0"] > 0
    assert statuses["database: inspect 1, import 1"] > 0


def test_file_is_deterministic() -> None:
    for number in range(60):
        assert made("same", number) == made("same", number)
