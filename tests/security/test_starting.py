"""Checks of TLS and access files at startup, and the reload of TLS files."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from sagastore_server.config.settings import Settings
from sagastore_server.security.setup import SecuritySetup, SecuritySetupError
from sagastore_server.security.tls import TlsFiles
from tests.security.pki import Pki, chain, entry, environment, key, write_access
from tests.support.server_process import clean_environment, serve_command


@pytest.fixture
def pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pki:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SAGASTORE_{name.upper()}", raising=False)
    return Pki(tmp_path / "pki")


def refusal(**given: Any) -> str:
    with pytest.raises(SecuritySetupError) as caught:
        SecuritySetup(Settings(**given))
    line = str(caught.value)
    assert "\n" not in line
    assert "-----" not in line
    return line


def encrypted(pki: Pki) -> bytes:
    loaded = load_pem_private_key(key(pki.issue("a.example")), None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))


BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
BROKEN_KEY = b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("server.pem", lambda _: b"\x30\x82\x01", "is not PEM"),
        ("server.pem", lambda pki: key(pki.issue("a")), "contains no certificate"),
        ("server.pem", lambda _: BROKEN, "contains an invalid certificate"),
        ("server.pem", lambda pki: chain(pki.issue("a")), "does not match the first certificate"),
        ("server.pem", lambda _: b" " * 2_000_000, "is larger than 1,048,576 bytes"),
        ("server.key", lambda pki: chain(pki.issue("a")), "contains no private key in PEM"),
        ("server.key", lambda _: BROKEN_KEY, "contains an invalid private key"),
        ("server.key", encrypted, "is encrypted; use an unencrypted key"),
        ("server.key", lambda pki: key(pki.issue("a")), "does not match the first certificate"),
        ("ca.pem", lambda pki: key(pki.issue("a")), "contains no certificate"),
        ("ca.pem", lambda pki: chain(pki.expired("a")), "every certificate in"),
    ],
)
def test_invalid_file_is_refused(
    pki: Pki, name: str, data: Callable[[Pki], bytes], problem: str
) -> None:
    cert, private = pki.server()
    (pki.folder / name).write_bytes(data(pki))
    line = refusal(tls_cert=cert, tls_key=private, tls_client_ca=pki.ca)
    assert str(pki.folder / name) in line
    assert problem in line


def test_certificate_outside_its_validity_is_refused(pki: Pki) -> None:
    cert, private = pki.server(pki.expired("a"))
    assert f"{cert} expired on 20" in refusal(tls_cert=cert, tls_key=private)
    begin = datetime.now(UTC) + timedelta(days=2)
    leaf = pki.issue("a", not_before=begin, not_after=begin + timedelta(days=9))
    cert, private = pki.server(leaf)
    assert f"{cert} is not valid before 20" in refusal(tls_cert=cert, tls_key=private)


@pytest.mark.parametrize(
    "private",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - the weak key under test
    ],
    ids=["ed25519", "p521", "k256", "rsa1024"],
)
def test_unsupported_key_is_refused(pki: Pki, private: Any) -> None:
    """With some of them gRPC fails to start without an error, with some every handshake fails."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, None if isinstance(private, ed25519.Ed25519PrivateKey) else SHA256())
    )
    cert = pki.write("server.pem", certificate.public_bytes(Encoding.PEM))
    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    problem = refusal(tls_cert=cert, tls_key=pki.write("server.key", data))
    assert "has an unsupported kind of key; use RSA with at least 2048 bits" in problem


def test_unreadable_file_is_refused(pki: Pki) -> None:
    cert, private = pki.server()
    missing = pki.folder / "missing"
    assert refusal(tls_cert=missing, tls_key=private).endswith("No such file or directory")
    assert refusal(tls_cert=pki.folder, tls_key=private) == f"{pki.folder} is not a file"
    assert "missing cannot be read" in refusal(access=missing)
    access = write_access(pki.folder / "access.toml", "[[token]]")
    assert refusal(access=access) == f"{access}: [[token]] number 1: name is missing"
    access.write_bytes(b"\xff")
    assert refusal(access=access) == f"{access} is not text in UTF-8"
    write_access(access, entry("certificate", "x", "reader"))
    assert "requests no client certificates" in refusal(
        tls_cert=cert, tls_key=private, access=access
    )


def test_public_address_requires_tls_and_authentication(pki: Pki) -> None:
    cert, private = pki.server()
    access = write_access(pki.folder / "access.toml", entry("token", "x", "reader", token="t"))
    tls: dict[str, Any] = {"tls_cert": cert, "tls_key": private}
    both = refusal(listen="0.0.0.0:1")
    assert "requires TLS (tls_cert and tls_key) and authentication (access, or" in both
    assert "--allow-insecure" in both
    no_tls = refusal(listen="[::]:1", access=access)
    assert "requires TLS (tls_cert and tls_key);" in no_tls
    anybody = refusal(listen="saga.example:1", **tls)
    assert "requires authentication (access, or tls_client_ca);" in anybody
    SecuritySetup(Settings(listen="0.0.0.0:1", access=access, **tls))
    SecuritySetup(Settings(listen="0.0.0.0:1", tls_client_ca=pki.ca, **tls))
    SecuritySetup(Settings(listen="0.0.0.0:1", allow_insecure=True))
    SecuritySetup(Settings(listen="127.0.0.1:1", access=access))


def test_server_exits_with_one_line(pki: Pki) -> None:
    cert, _ = pki.server()
    settings = environment((cert, pki.write("other.key", key(pki.issue("a")))))
    done = subprocess.run(
        serve_command("--listen", "127.0.0.1:0"),
        env=clean_environment(pki.folder) | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"sagastore-server: {pki.folder / 'other.key'} does not match")
    assert done.stderr.count("\n") == 1


def reload(files: TlsFiles, times: int = 2) -> None:
    for _ in range(times):
        files.poll()
        files.apply()


def test_reload_needs_a_matching_pair(pki: Pki) -> None:
    files = TlsFiles(*pki.server(), pki.ca)
    first = files.material()
    assert "PRIVATE" not in repr(first)
    next_leaf = pki.issue("localhost", not_after=datetime.now(UTC) + timedelta(days=60))
    pki.write("server.pem", chain(next_leaf))
    reload(files)
    assert files.material() is first
    pki.write("server.key", key(next_leaf))
    assert files.poll()  # A change is confirmed by a second reload.
    files.apply()
    assert files.material() is first
    reload(files, 1)
    assert files.material().key == key(next_leaf)
    assert 59 < (files.ends - time.time()) / 86_400 < 60.1
    # Neither an invalid certificate nor the current one causes a reload.
    pki.server(pki.expired("localhost"))
    reload(files)
    (pki.folder / "server.key").unlink()
    reload(files)
    taken = files.material()
    assert taken.key == key(next_leaf)
    pki.server(next_leaf)
    reload(files)
    assert files.material() is taken


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_certificate_without_expiry_is_reloaded_in_any_time_zone(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], zone: str
) -> None:
    """The year 9999 means "no expiry"; east of Greenwich that moment is in the year 10000."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        files = TlsFiles(*pki.server())
        leaf = pki.issue("localhost", not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        pki.server(leaf)
        reload(files)
        assert files.material().key == key(leaf)
        (pki.folder / "server.key").write_bytes(BROKEN_KEY)
        reload(files)
        assert files.material().key == key(leaf)
    finally:
        monkeypatch.undo()
        time.tzset()
    logged = capsys.readouterr().out
    assert "certificate reloaded" in logged
    assert "certificate not reloaded" in logged
    assert logged.count("9999-12-31T23:59:59+00:00") == 2


def test_certificate_with_invalid_date_is_refused(pki: Pki) -> None:
    leaf = pki.issue("localhost", not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    der = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)
    odd = der.replace(b"99991231235959Z", b"00001231235959Z")
    assert odd != der
    cert = pki.write("odd.pem", ssl.DER_cert_to_PEM_cert(odd).encode())
    problem = refusal(tls_cert=cert, tls_key=pki.write("odd.key", key(leaf)))
    assert str(cert) in problem
    assert "invalid" in problem


def test_expired_authority_beside_a_valid_one_is_accepted(pki: Pki) -> None:
    ended = Pki(pki.folder / "ended")
    both = chain(ended.expired("ca.example")) + pki.ca.read_bytes()
    TlsFiles(*pki.server(), pki.write("both.pem", both))


def test_certificate_that_expires_soon_is_logged(
    pki: Pki, capsys: pytest.CaptureFixture[str]
) -> None:
    soon = datetime.now(UTC) + timedelta(days=20)
    TlsFiles(*pki.server(pki.issue("localhost", not_after=soon)))
    assert "certificate expires soon" in capsys.readouterr().out
    later = datetime.now(UTC) + timedelta(days=40)
    TlsFiles(*pki.server(pki.issue("localhost", not_after=later)))
    assert "expires soon" not in capsys.readouterr().out
