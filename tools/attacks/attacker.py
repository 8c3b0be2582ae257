"""Process that runs one attack and reports what it did.

    python -m tools.attacks.attacker NAME --size short|long --seconds N < target.json

The target, with the tokens, comes on standard input, so that no token is on a command line.
Standard output has a line ``ready`` when the attack is in place, and a line of JSON at the end. The
process has the lowest priority, so that the figures of the callers beside show the load of the
server rather than that of the attacker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from tools.attacks.loopback import Address
from tools.attacks.plan import MAX_SECONDS, Attack, CapReachedError, Pace, Target
from tools.attacks.registry import socket_attack

_MARGIN = 60
"""Seconds after the latest end of the attack at which the process is killed."""
_MEMORY = 4 * 1024**3
"""Bytes of address space, against a mistake in an attack."""


def encode(target: Target) -> str:
    """Return ``target`` as JSON."""
    document = {
        "rpc": list(target.rpc),
        "ops": list(target.ops),
        "ca": str(target.ca),
        "tokens": dict(target.tokens),
    }
    return json.dumps(document)


def decode(text: str) -> Target:
    """Return the target that `encode` has written.

    Raises:
        NotLoopbackError: It is another machine.
    """
    document: dict[str, Any] = json.loads(text)
    return Target(
        Address(*document["rpc"]),
        Address(*document["ops"]),
        Path(document["ca"]),
        document["tokens"],
    )


async def run(attack: Attack, target: Target, pace: Pace) -> str:
    """Run the attack until its end or SIGTERM; return why it ended early, or an empty string."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pace.stop)
    try:
        # Attacks end in time; this limit is for one that waits for the server.
        async with asyncio.timeout(2 * pace.seconds + _MARGIN / 2):
            await attack.run(target, pace)
    except TimeoutError:
        return "the server did not answer"
    except (CapReachedError, OSError) as exc:
        await pace.hold()
        return str(exc) or type(exc).__name__
    return ""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.attacks.attacker")
    parser.add_argument("name")
    parser.add_argument("--size", choices=("short", "long"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    target = decode(sys.stdin.readline())
    attack = socket_attack(given.name)
    size = attack.short if given.size == "short" else attack.long
    signal.alarm(int(2 * min(given.seconds, MAX_SECONDS)) + _MARGIN)
    pace = Pace(size, given.seconds, lambda: print("ready", flush=True))
    ended = asyncio.run(run(attack, target, pace))
    pace.ready()
    document = {
        "sent": pace.sent,
        "connections": pace.connections,
        "outcomes": dict(pace.outcomes),
        "ended": ended,
    }
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
