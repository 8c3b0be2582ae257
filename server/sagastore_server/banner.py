"""What a person who has started the server reads."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from sagastore_server.config.address import Address
from sagastore_server.config.settings import DEFAULT_LISTEN


class Asked(NamedTuple):
    """What callers are asked for."""

    tls: bool = False
    certificate: bool = False
    token: bool = False
    """Whether there is an access file."""


def greeting(
    version: str, address: Address, store: str, messages: int, quarantined: int, *, asked: Asked
) -> str:
    """Return where the server is, what it has, what it asks for, and what to try next.

    ``messages`` is -1 while unknown.
    """
    command = _client_command()
    if str(address) != DEFAULT_LISTEN:
        command += f" --target {_reachable(address)}"
    lines = [
        f"SagaStore {version} is serving on {address}",
        f"  store     {store}",
    ]
    if needed := _needed(asked):
        lines.append(f"  callers   need {needed}; see docs/how-to/security.md")
    if messages >= 0:
        lines.append(f"  messages  {messages:,}")
    if quarantined:
        lines.append(
            f"  in quarantine: {quarantined:,} rows; see them with {command} migrate quarantine"
        )
    lines += [
        "",
        "Try in another terminal:",
        f'  {command} save --provider openai --role user "Hello, SagaStore"',
        f"  {command} search hello",
        f"  {command} import memory.db      # a legacy database, or JSON Lines",
        f"  {command} --help",
        "",
        "Ctrl+C stops the server; calls under way are finished first.",
    ]
    return "\n".join(lines)


def _reachable(address: Address) -> Address:
    """Return what this machine can connect to: an address that means all of them is none."""
    return address._replace(host="localhost") if address.host in {"0.0.0.0", "::"} else address  # noqa: S104 - compared, not listened on


def _needed(asked: Asked) -> str:
    needed = ["--tls-ca FILE"] if asked.tls else []
    if asked.certificate:
        needed.append("--tls-cert and --tls-key")
    if asked.token:
        needed.append("a name in the access file" if asked.certificate else "a token")
    return ", ".join(needed)


def _client_command() -> str:
    """Return what starts the client: its path, where a shell would not find its name."""
    name = "sagastore"
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) or not beside.exists():
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
