"""Attacks on files and processes, in their short form."""

from __future__ import annotations

import pytest

from tools.attacks.file_attack import FileAttack, performed, reason_to_skip
from tools.attacks.registry import FILE_ATTACKS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attack", FILE_ATTACKS, ids=lambda attack: attack.name)
def test_files_and_processes_withstand_attack(attack: FileAttack) -> None:
    if reason := reason_to_skip(attack):
        pytest.skip(reason)
    assert performed(attack, short=True).complaints == []
