"""``sagastore-server token``: create, list and revoke tokens."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.program import Command
from sagastore_server.cli.program import ForwardingGroup
from sagastore_server.config import settings
from sagastore_server.config.options import ConfigFile, Json, fail
from sagastore_server.interfaces.access import Role
from sagastore_server.security import access_edit
from sagastore_server.security.access_rules import (
    TOKEN_NAME,
    AccessError,
    NoSuchTokenError,
    TokenEntry,
    digest_of,
)

token = typer.Typer(
    name="token",
    help="Create, list and revoke tokens. A running server applies changes within about a second.",
    cls=ForwardingGroup,
    no_args_is_help=True,
)

_SHOWN = 12
"""Digits of a hash that are shown, enough to distinguish tokens."""


class RoleName(StrEnum):
    """Values of --role."""

    reader = "reader"
    writer = "writer"
    admin = "admin"


_Access = Annotated[
    Path | None,
    typer.Option(
        "--access",
        metavar="FILE",
        show_default=False,
        help="The access file. Default: the one that `serve` would use.",
    ),
]


@token.callback()
def _common(*, access: _Access = None, config: ConfigFile = None, as_json: Json = False) -> None:
    """Create, list and revoke tokens. A running server applies changes within about a second."""
    # `ForwardingGroup` passes the options on.
    del access, config, as_json


@token.command("new", cls=Command)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the caller; shown in logs.")],
    *,
    role: Annotated[RoleName, typer.Option(help="Role, which defines the permissions.")],
    expires_days: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=36_500, show_default=False, help="Expires after N days."
        ),
    ] = None,
    access: _Access = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Create a token, print it once, and add its hash to the access file.

    Standard output has only the token: `sagastore-server token new web --role writer > web.token`.
    Several tokens may have the same name, so that one can replace another while both are valid.
    """
    path = _path(access, config)
    if not TOKEN_NAME.fullmatch(name):
        fail(
            f"invalid name {name!r}; use 1 to 64 letters, digits or . _ @ -, "
            "the first a letter or digit"
        )
    token_ = access_edit.new_token()
    expires = None
    if expires_days is not None:
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=expires_days)
    entry = TokenEntry(name, Role[role.name.upper()], digest_of(token_), expires)
    try:
        access_edit.add_token(path, entry)
    except AccessError as exc:
        fail(str(exc))
    if as_json:
        typer.echo(json.dumps({"token": token_, **_document(entry)}))
        return
    typer.echo(token_)
    typer.echo(f"Added to {path}: {_line(entry)}. The token is not shown again.", err=True)


@token.command("list", cls=Command)
def show(*, access: _Access = None, config: ConfigFile = None, as_json: Json = False) -> None:
    """List the tokens: name, role, start of the hash, and expiry."""
    try:
        entries = access_edit.read_rules(_path(access, config)).tokens
    except AccessError as exc:
        fail(str(exc))
    if as_json:
        typer.echo(json.dumps([_document(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        typer.echo(_line(entry))


@token.command("revoke", cls=Command)
def revoke(
    which: Annotated[
        str,
        typer.Argument(
            metavar="NAME|HASH", help="A name, or the first 8 or more digits of a hash."
        ),
    ],
    *,
    access: _Access = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Remove all tokens with that name, or the one whose hash starts with HASH."""
    path = _path(access, config)
    try:
        removed = access_edit.remove_tokens(path, which)
    except NoSuchTokenError as exc:
        fail(str(exc), ExitStatus.NOT_FOUND, code="NOT_FOUND")
    except AccessError as exc:
        fail(str(exc))
    if as_json:
        typer.echo(json.dumps([_document(entry) for entry in removed], indent=2))
        return
    for entry in removed:
        typer.echo(f"Revoked: {_line(entry)}")


def _path(access: Path | None, config: Path | None) -> Path:
    try:
        path = settings.load(config, access=access).access
    except settings.SettingsError as exc:
        fail(str(exc))
    if path is None:
        fail("no access file is set; use --access, SAGASTORE_ACCESS, or the configuration file")
    return path


def _line(entry: TokenEntry) -> str:
    expiry = "no expiry"
    if entry.expires is not None:
        word = "expired" if _is_expired(entry) else "expires"
        expiry = f"{word} {entry.expires.isoformat(sep=' ', timespec='minutes')}"
    return f"{entry.name}  {entry.role.name.lower()}  {entry.digest.hex()[:_SHOWN]}  {expiry}"


def _is_expired(entry: TokenEntry) -> bool:
    return entry.expires is not None and entry.expires <= datetime.now(UTC)


def _document(entry: TokenEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "role": entry.role.name.lower(),
        "sha256": entry.digest.hex()[:_SHOWN],
        "expires": None if entry.expires is None else entry.expires.isoformat(),
        "expired": _is_expired(entry),
    }
