"""Certificates and access files for tests."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

from sagastore import TLS
from sagastore_server.security.access_rules import digest_of

CLIENT = "client.example"
"""Name in client certificates."""


class Pki:
    """A certificate authority with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = self.write("ca.pem", self.authority.cert_pem.bytes())

    def write(self, name: str, data: bytes, mode: int = 0o600) -> Path:
        """Replace a file atomically, as a careful operator does."""
        draft = self.folder / f"{name}.new"
        draft.write_bytes(data)
        draft.chmod(mode)
        return draft.replace(self.folder / name)

    def issue(self, *names: str, **options: Any) -> trustme.LeafCert:
        """Issue a certificate with its key."""
        return self.authority.issue_cert(*names, **options)

    def expired(self, *names: str) -> trustme.LeafCert:
        """Issue a certificate that expired yesterday."""
        ended = datetime.now(UTC) - timedelta(days=1)
        return self.issue(*names, not_before=ended - timedelta(days=9), not_after=ended)

    def server(self, leaf: trustme.LeafCert | None = None) -> tuple[Path, Path]:
        """Write the certificate and the key of a server, and return their paths."""
        leaf = leaf or self.issue("localhost", "127.0.0.1")
        return self.write("server.pem", chain(leaf)), self.write("server.key", key(leaf))

    def client(self, leaf: trustme.LeafCert | None = None) -> TLS:
        """Return the TLS options of a client with a certificate."""
        leaf = leaf or self.issue(CLIENT)
        return TLS(ca=self.ca, cert=chain(leaf), key=key(leaf))


def chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def key(leaf: trustme.LeafCert) -> bytes:
    return leaf.private_key_pem.bytes()


def entry(kind: str, name: str, role: str, token: str = "", more: str = "") -> str:
    """Return an entry of an access file."""
    digest = f'sha256 = "{digest_of(token).hex()}"\n' if token else ""
    return f'[[{kind}]]\nname = "{name}"\nrole = "{role}"\n{digest}{more}\n'


def write_access(path: Path, *entries: str) -> Path:
    """Replace an access file atomically."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text("\n".join(entries))
    draft.chmod(0o600)
    return draft.replace(path)


def environment(
    tls: tuple[Path, Path] | None = None, client_ca: Path | None = None, access: Path | None = None
) -> dict[str, str]:
    """Return environment variables with the settings of a server."""
    cert, private = tls or (None, None)
    given = {"TLS_CERT": cert, "TLS_KEY": private, "TLS_CLIENT_CA": client_ca, "ACCESS": access}
    return {
        "SAGASTORE_OPS_LISTEN": "off",
        **{f"SAGASTORE_{name}": os.fspath(path) for name, path in given.items() if path},
    }
