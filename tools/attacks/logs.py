"""Attacks on the log: calls whose refusal writes more than they cost, or a secret."""

from __future__ import annotations

from tests.support.waiting import eventually
from tools.attacks import frames
from tools.attacks.frames import Pairs
from tools.attacks.http2_connection import Connection
from tools.attacks.loopback import SOURCE
from tools.attacks.plan import Attack, Pace, Size, Target
from tools.attacks.service import Service

_AT_ONCE = 100


async def token_with_a_byte(target: Target, pace: Pace) -> None:
    """Calls with a valid token that is followed by the byte ff."""
    token = f"Bearer {target.tokens['writer']}".encode()
    await _calls(target, pace, [("authorization", token + b"\xff")])


async def unknown_tokens(target: Target, pace: Pace) -> None:
    """Calls with an unknown token."""
    await _calls(target, pace, [("authorization", "Bearer saga_unknown")])


async def long_tokens(target: Target, pace: Pace) -> None:
    """Calls with a token of 7 kB."""
    await _calls(target, pace, [("authorization", "Bearer " + "x" * 7000)])


async def long_call_ids(target: Target, pace: Pace) -> None:
    """Calls with an id of 7 kB and a token that is refused."""
    await _calls(target, pace, [("authorization", "Bearer x"), ("x-request-id", "x" * 7000)])


async def broken_requests(target: Target, pace: Pace) -> None:
    """Calls of a writer whose requests do not parse."""
    await _calls(
        target, pace, [("authorization", f"Bearer {target.tokens['writer']}")], b"\xff" * 2000
    )


async def _calls(target: Target, pace: Pace, more: Pairs, payload: bytes = b"") -> None:
    body = frames.message(payload)
    made = 0
    pace.ready()
    while pace.more() and made < pace.count:
        async with Connection.opened(target, pace) as connection:
            while pace.more() and made < pace.count and not connection.closed:
                for _ in range(_AT_ONCE):
                    await connection.call(frames.STORAGE + "Get", body, more=more)
                made += _AT_ONCE
                await connection.all_answered(connection.begun)
    await pace.hold()


def peer_is_logged(service: Service) -> list[str]:
    """Check that the log has the address of refused callers."""
    try:
        eventually(lambda: any(SOURCE in line for line in service.log()))
    except TimeoutError:
        return [f"the log has no line with {SOURCE}, the address of the refused calls"]
    return []


ATTACKS = (
    Attack(
        "token-with-a-byte",
        "calls with a valid token followed by the byte ff",
        token_with_a_byte,
        Size(1_000, 20, 100),
        Size(1_000_000, 500, 100_000),
    ),
    Attack(
        "unknown-tokens",
        "calls with an unknown token",
        unknown_tokens,
        Size(1_000, 20, 100),
        Size(1_000_000, 500, 100_000),
        afterwards=peer_is_logged,
    ),
    Attack(
        "long-tokens",
        "calls with a token of 7 kB",
        long_tokens,
        Size(300, 20, 100),
        Size(100_000, 1000, 100_000),
    ),
    Attack(
        "long-call-ids",
        "calls with an id of 7 kB and a token that is refused",
        long_call_ids,
        Size(300, 20, 100),
        Size(100_000, 1000, 100_000),
    ),
    Attack(
        "broken-requests",
        "calls of a writer whose requests do not parse",
        broken_requests,
        Size(1_000, 20, 100),
        Size(1_000_000, 500, 100_000),
    ),
)
