"""Command line of the attack set (``make attacks``).

    python -m tools.attacks [--attack NAME ...] [--seconds N] [--short] [--list]

Each attack over a socket runs against a new server on the loopback interface. Exit status 1 if an
expectation is not met. The report is saved below ``var/attacks``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.attacks import report
from tools.attacks.file_attack import FileAttack, FileResult, performed
from tools.attacks.measurement import Result, measured
from tools.attacks.plan import MAX_SECONDS, Attack
from tools.attacks.registry import FILE_ATTACKS, SOCKET_ATTACKS

_FOLDER = Path("var/attacks")


def chosen(names: Sequence[str]) -> list[Attack | FileAttack]:
    """Return the attacks with one of ``names``, or all if there are none.

    Raises:
        SystemExit: There is no attack of that name.
    """
    everything: tuple[Attack | FileAttack, ...] = (*SOCKET_ATTACKS, *FILE_ATTACKS)
    every = {attack.name: attack for attack in everything}
    for name in names:
        if name not in every:
            raise SystemExit(f"unknown attack {name!r}; available: {', '.join(every)}")
    return [every[name] for name in names or every]


def run(attack: Attack | FileAttack, seconds: float | None) -> Result | FileResult:
    """Run one attack; without ``seconds`` in its short form."""
    if isinstance(attack, FileAttack):
        return performed(attack, short=seconds is None)
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        return asyncio.run(measured(attack, Path(folder), seconds))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.attacks")
    parser.add_argument("--attack", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--short", action="store_true", help="the sizes of the tests")
    parser.add_argument("--list", action="store_true", help="list the attacks")
    given = parser.parse_args()
    attacks = chosen(given.attack)
    if given.list:
        print("\n".join(f"{attack.name}: {attack.what}" for attack in attacks))
        return 0
    if not 0 < given.seconds <= MAX_SECONDS:
        parser.error(f"--seconds must be more than 0 and at most {MAX_SECONDS:g}")
    # Both signals end the server and the attack process, also in the background of a shell, which
    # ignores SIGINT there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    results: list[Result | FileResult] = []
    for attack in attacks:
        results.append(run(attack, None if given.short else given.seconds))
        print(report.table(results[-1:]).partition("\n")[2], flush=True)
        report.write(results, _FOLDER)
    print(f"\n{report.table(results)}\n\nThe report is in {_FOLDER}.")
    return 1 if any(result.complaints for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
