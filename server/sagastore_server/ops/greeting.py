"""What a person who has started the server reads."""

from __future__ import annotations

from pathlib import Path

from sagastore_server.ops.address import Address
from sagastore_server.ops.settings import DEFAULT_LISTEN


def greeting(version: str, address: Address, file: Path, messages: int, quarantined: int) -> str:
    """Return where the server is, what it has, and what to try next.

    ``messages`` is -1 while unknown.
    """
    target = "" if str(address) == DEFAULT_LISTEN else f" --target {address}"
    lines = [
        f"SagaStore {version} is serving on {address}",
        f"  file      {file}",
    ]
    if messages >= 0:
        lines.append(f"  messages  {messages:,}")
    if quarantined:
        lines.append(
            f"  in quarantine: {quarantined:,} rows; see: sagastore{target} migrate quarantine"
        )
    lines += [
        "",
        "Try in another terminal:",
        f'  sagastore{target} save --provider openai --role user "Hello, SagaStore"',
        f"  sagastore{target} search hello",
        f"  sagastore{target} migrate status",
        "",
        "Ctrl+C stops the server; calls under way are finished first.",
    ]
    return "\n".join(lines)
