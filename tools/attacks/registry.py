"""All attacks, by name."""

from __future__ import annotations

from tools.attacks import (
    access_edits,
    bodies,
    connections,
    logs,
    processes,
    readers,
    restores,
    streams,
    trust,
)
from tools.attacks.file_attack import FileAttack
from tools.attacks.plan import Attack

SOCKET_ATTACKS: tuple[Attack, ...] = (
    *bodies.ATTACKS,
    *streams.ATTACKS,
    *connections.ATTACKS,
    *readers.ATTACKS,
    *logs.ATTACKS,
)

FILE_ATTACKS: tuple[FileAttack, ...] = (
    *restores.ATTACKS,
    *access_edits.ATTACKS,
    *processes.ATTACKS,
    *trust.ATTACKS,
)


def socket_attack(name: str) -> Attack:
    """Return the attack ``name``.

    Raises:
        KeyError: There is none.
    """
    return {attack.name: attack for attack in SOCKET_ATTACKS}[name]
