"""Start banner: address, store and first commands, for the terminal."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from sagastore_server.config.address import Address
from sagastore_server.config.settings import DEFAULT_LISTEN


class Credentials(NamedTuple):
    """What a client needs to connect and to call."""

    tls: bool = False
    certificate: bool = False
    token: bool = False
    """Whether the server has an access file."""


def banner(
    version: str,
    address: Address,
    store: str,
    messages: int,
    quarantined: int,
    *,
    credentials: Credentials,
) -> str:
    """Return the lines that ``serve`` prints once the server accepts calls.

    ``messages`` is -1 if unknown.
    """
    command = _client_command()
    if str(address) != DEFAULT_LISTEN:
        command += f" --target {_reachable(address)}"
    lines = [
        f"SagaStore {version} is serving on {address}",
        f"  store     {store}",
    ]
    if needed := _needed(credentials):
        lines.append(f"  clients   need {needed}; see docs/how-to/security.md")
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
        "Ctrl+C stops the server after the calls in progress have finished.",
    ]
    return "\n".join(lines)


def _reachable(address: Address) -> Address:
    """Return an address that clients on this machine can connect to: not 0.0.0.0 or ::."""
    return address._replace(host="localhost") if address.host in {"0.0.0.0", "::"} else address  # noqa: S104 - compared, not listened on


def _needed(credentials: Credentials) -> str:
    needed = ["--tls-ca FILE"] if credentials.tls else []
    if credentials.certificate:
        needed.append("--tls-cert and --tls-key")
    if credentials.token:
        needed.append("a name in the access file" if credentials.certificate else "a token")
    return ", ".join(needed)


def _client_command() -> str:
    """Return the command that starts the client: its path if its name is not on the PATH."""
    name = "sagastore"
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) or not beside.exists():
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
