"""``sagastore-server status``: readiness of a running server, with reasons and remedies."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from sagastore.commandline.exit_status import ExitStatus
from sagastore_server.config.address import Address
from sagastore_server.config.options import ConfigFile, Json, fail
from sagastore_server.config.settings import OFF, SettingsError, load

_TIMEOUT = 5.0
"""Seconds that the server may take to answer."""


def status(
    *,
    ops: Annotated[
        str | None,
        typer.Option(
            "--ops",
            metavar="HOST:PORT",
            help="Ops address of the server. Default: the setting ops_listen.",
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show whether the server is ready, and if not why and what to do.

    Queries its ops port. Exit status 0 if it is ready, 1 if it is not, 4 if it is unreachable.
    """
    address = _address(ops, config)
    document = _query(address)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        for line in _lines(document, address):
            typer.echo(line)
    if not document["ready"]:
        raise typer.Exit(1)


def _address(given: str | None, config: ConfigFile) -> Address:
    if given is not None:
        try:
            return Address.parse(given)
        except ValueError as exc:
            raise typer.BadParameter(str(exc), param_hint="--ops") from exc
    try:
        listen = load(config).ops_listen
    except SettingsError as exc:
        fail(str(exc))
    if listen == OFF:
        fail("ops_listen is off, so the server reports no status; set it to an address")
    return _reachable(Address.parse(listen))


def _reachable(address: Address) -> Address:
    """Return an address to connect to, if the server listens on all addresses of this machine."""
    return {
        "0.0.0.0": address._replace(host="127.0.0.1"),  # noqa: S104 - compared only
        "::": address._replace(host="::1"),
    }.get(address.host, address)


def _query(address: Address) -> dict[str, Any]:
    # Without the proxies of the environment: the server is on this machine or in its network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/readyz", timeout=_TIMEOUT) as answer:
            body = answer.read()
    except urllib.error.HTTPError as exc:
        body = exc.read()
    except http.client.HTTPException:
        body = b""
    except OSError as exc:
        reason = getattr(exc, "reason", exc)
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        fail(
            f"no server answers on {address}: {why}; check that it runs, and that this is its "
            "ops_listen (in its log, event serving)",
            ExitStatus.UNAVAILABLE,
            code="UNAVAILABLE",
        )
    try:
        document = json.loads(body)
        _check(document)
    except (ValueError, KeyError, TypeError):
        fail(f"the program on {address} is not a SagaStore server; check ops_listen")
    found: dict[str, Any] = document
    return found


def _check(document: Any) -> None:
    """Check that the document has what `_lines` needs.

    Raises:
        KeyError, TypeError: Something is missing.

    """
    for name in ("ready", "phase", "reasons", "warnings"):
        document[name]
    for finding in (*document["reasons"], *document["warnings"]):
        for name in ("reason", "detail", "remedy"):
            finding[name]


def _lines(document: dict[str, Any], address: Address) -> list[str]:
    phase = f", phase {document['phase']}" if document["phase"] else ""
    if document.get("forwarding_to"):
        phase += f", forwarding to {document['forwarding_to']}"
    lines = [f"{'ready' if document['ready'] else 'not ready'} ({address}{phase})"]
    for kind in ("reasons", "warnings"):
        for finding in document[kind]:
            lines += [
                f"  {finding['reason']}: {finding['detail']}",
                f"    to do: {finding['remedy']}",
            ]
    return lines
