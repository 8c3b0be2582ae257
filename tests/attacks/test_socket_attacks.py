"""Attacks over a socket, in their short form; ``make attacks`` runs the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.attacks.measurement import measured
from tools.attacks.plan import Attack
from tools.attacks.registry import SOCKET_ATTACKS

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="memory is read from /proc, source 127.0.0.66"
    ),
    # A server that fails takes the whole 30 s to release its memory, or to answer at all.
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("attack", SOCKET_ATTACKS, ids=lambda attack: attack.name)
async def test_server_withstands_attack(attack: Attack, tmp_path: Path) -> None:
    result = await measured(attack, tmp_path)
    assert result.complaints == []
