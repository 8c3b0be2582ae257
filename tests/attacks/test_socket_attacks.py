"""Attacks over a socket, in their short form; ``make attacks`` runs the long one."""

from __future__ import annotations

import asyncio
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
    # A server that fails takes up to 120 s to release its memory, or to answer at all.
    pytest.mark.timeout(600),
]
QUIET = sorted((one for one in SOCKET_ATTACKS if one.quiet), key=lambda one: one.seconds)
TOGETHER = [QUIET[:4], QUIET[4:]]
"""Attacks that wait most of the time; those of about the same duration run at once."""


def names(attacks: list[Attack]) -> str:
    return " ".join(one.name for one in attacks)


@pytest.mark.parametrize(
    "attack", [one for one in SOCKET_ATTACKS if not one.quiet], ids=lambda attack: attack.name
)
async def test_server_withstands_attack(attack: Attack, tmp_path: Path) -> None:
    result = await measured(attack, tmp_path)
    assert result.complaints == []


@pytest.mark.parametrize("attacks", TOGETHER, ids=names)
async def test_servers_withstand_quiet_attacks(attacks: list[Attack], tmp_path: Path) -> None:
    """Each attack has its own server."""
    folders = [tmp_path / attack.name for attack in attacks]
    for folder in folders:
        folder.mkdir()
    results = await asyncio.gather(*map(measured, attacks, folders))
    assert {one.attack.name: one.complaints for one in results if one.complaints} == {}
