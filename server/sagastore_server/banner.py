"""Announcement that the server accepts calls: log line, and start banner for the terminal."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from sagastore.commandline.text import counted
from sagastore_server.config.address import Address
from sagastore_server.config.settings import DEFAULT_LISTEN, OFF, Settings
from sagastore_server.security.certificate_names import certificate_names

_LOCAL = "localhost"
_APPLIED_AFTER = 2
"""Seconds after which the server has read a changed access file: it looks once a second."""

_log = structlog.get_logger(__name__)


class Serving(NamedTuple):
    """State of a server that accepts calls."""

    version: str
    address: Address
    ops: Address | None
    """Address of the ops port; None if there is none."""
    store: str
    """Location of the messages, for display."""
    messages: int
    """-1 if unknown."""
    quarantined: int
    """Rows in quarantine."""


class Credentials(NamedTuple):
    """What a client needs to connect and to call."""

    tls: Path | None = None
    """The certificate of the server; None: no TLS."""
    certificate: bool = False
    """Whether clients need a certificate."""
    access: Path | None = None
    """The access file; None: every caller is allowed to do everything."""


def announce(serving: Serving, settings: Settings, say: Callable[[str], None]) -> None:
    """Log that the server accepts calls, and print the banner with ``say``."""
    _log.info(
        "serving",
        address=str(serving.address),
        ops=OFF if serving.ops is None else str(serving.ops),
        version=serving.version,
        store=serving.store,
        messages=serving.messages,
        quarantined=serving.quarantined,
        **({"workers": settings.workers} if settings.workers > 1 else {}),
    )
    say(banner_of(serving, settings))


def banner_of(serving: Serving, settings: Settings) -> str:
    """Return the banner of a server with these settings."""
    credentials = Credentials(
        tls=settings.tls_cert,
        certificate=settings.tls_client_ca is not None,
        access=settings.access,
    )
    return banner(serving, credentials, settings.workers)


def banner(serving: Serving, credentials: Credentials, workers: int = 1) -> str:
    """Return the lines that ``serve`` prints once the server accepts calls.

    The commands can be pasted into a shell on this machine, also of a server with TLS and an
    access file: the lines before them set the environment.
    """
    address, quarantined = serving.address, serving.quarantined
    command = _command("sagastore")
    target = _reachable(address)
    if str(address) != DEFAULT_LISTEN:
        command += f" --target {target}"
    lines = [
        f"SagaStore {serving.version} is serving on {address}",
        f"  store     {serving.store}",
    ]
    if workers > 1:
        lines.append(f"  workers   {workers}")
    if needed := _needed(credentials):
        lines.append(f"  clients   need {needed}; see docs/how-to/security.md")
    if serving.messages >= 0:
        lines.append(f"  messages  {serving.messages:,}")
    if quarantined:
        lines.append(f"  in quarantine: {counted(quarantined, 'row')}")
    # Only administrators see the quarantine.
    role = "admin" if quarantined else "writer"
    lines += [
        "",
        "Try in another terminal:",
        *(f"  {line}" for line in _environment(target, credentials, role)),
        f'  {command} save --provider openai --role user "Hello, SagaStore"',
        f"  {command} search hello",
        *([f"  {command} migrate quarantine"] if quarantined else ()),
        f"  {command} import --help",
        "",
        "Ctrl+C stops the server after the calls in progress have finished.",
    ]
    return "\n".join(lines)


def _reachable(address: Address) -> Address:
    """Return an address that clients on this machine can connect to: not 0.0.0.0 or ::."""
    return address._replace(host=_LOCAL) if address.host in {"0.0.0.0", "::"} else address  # noqa: S104 - compared, not listened on


def _needed(credentials: Credentials) -> str:
    needed = ["TLS"] if credentials.tls else []
    if credentials.certificate:
        needed.append("a certificate")
    if credentials.access:
        needed.append("a name in the access file" if credentials.certificate else "a token")
    return ", ".join(needed)


def _environment(target: Address, credentials: Credentials, role: str) -> Iterator[str]:
    """Yield the shell commands that set what clients need."""
    if credentials.tls:
        # Trusting the certificate itself works with any issuer.
        yield f"export SAGASTORE_TLS_CA={_quoted(credentials.tls)}"
        names = certificate_names(credentials.tls)
        if names and target.host not in names:
            yield f"export SAGASTORE_TLS_SERVER_NAME={shlex.quote(_without_wildcard(names[0]))}"
    if credentials.certificate:
        # The files of docs/how-to/security.md: the server knows no certificate of a client.
        yield "export SAGASTORE_TLS_CERT=client.pem SAGASTORE_TLS_KEY=client.key"
    if credentials.access:
        new = f"{_command('sagastore-server')} token new me --role {role}"
        yield f'export SAGASTORE_TOKEN="$({new} --access {_quoted(credentials.access)})"'
        yield f"sleep {_APPLIED_AFTER}"


def _without_wildcard(name: str) -> str:
    """Return a host that a name of a certificate covers."""
    return name.replace("*", "sagastore", 1) if name.startswith("*.") else name


def _quoted(path: Path) -> str:
    return shlex.quote(str(path.absolute()))


def _command(name: str) -> str:
    """Return how to start a program of this installation: its path if it is not on the PATH."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) or not beside.exists():
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
