from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagastore import TLS, AsyncClient, Client, InvalidArgumentError
from sagastore._target import Address, parse_targets


@pytest.mark.parametrize(
    ("text", "target", "loopback"),
    [
        ("127.0.0.1:50051", "dns:///127.0.0.1:50051", True),
        ("localhost", "dns:///localhost:50051", True),
        ("LOCALHOST.:1", "dns:///LOCALHOST.:1", True),
        ("127.9.9.9:1", "dns:///127.9.9.9:1", True),
        ("[::1]:5", "dns:///[::1]:5", True),
        ("::1", "dns:///[::1]:50051", True),
        ("[2001:db8::1]", "dns:///[2001:db8::1]:50051", False),
        ("example.org:443", "dns:///example.org:443", False),
        ("10.0.0.1", "dns:///10.0.0.1:50051", False),
        ("localhost.example.org", "dns:///localhost.example.org:50051", False),
        ("unix:/run/s.sock", "unix:/run/s.sock", True),
        ("dns:///example.org:1", "dns:///example.org:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", "ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2", True),
    ],
)
def test_addresses_are_parsed(text: str, target: str, loopback: bool) -> None:
    (address,) = parse_targets(text)
    assert (address.target, address.loopback) == (target, loopback)


def test_several_addresses_are_parsed() -> None:
    expected = (
        Address("a:1", "dns:///a:1", False),
        Address("b:50051", "dns:///b:50051", False),
    )
    assert parse_targets("a:1, b") == parse_targets(["a:1", "b"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,", ":1", "a:b", "a:0", "a:65536", "[::1", "[::1]x", "http://a:1", "a:١"),
        *("a:b:c", "[a]:1", "two words:1", "a/b:1", "user@a:1", "a?b"),
    ],
)
def test_malformed_addresses_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="target"):
        parse_targets(text)
    with pytest.raises(ValueError, match="target"):
        parse_targets([])


TOKEN = "s3cret"


@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_token_is_not_sent_in_plain_text(client: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"plain text; use tls=") as caught:
        client(["localhost", "example.org"], token=TOKEN)
    assert TOKEN not in str(caught.value)
    for options in ({"tls": True}, {"allow_insecure_token": True}):
        assert TOKEN not in repr(client("example.org", token=TOKEN, **options))
    assert repr(client("[::1]:5", token=TOKEN)) == f"{client.__name__}('[::1]:5', tls=False)"


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "naïve"])
def test_invalid_tokens_are_rejected(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        AsyncClient(token=token)
    assert not token or token not in str(caught.value)


def test_tls_repr_hides_the_key(tmp_path: Path) -> None:
    assert "key" not in repr(TLS(cert=b"c", key=b"k"))
    with pytest.raises(ValueError, match="cert and key belong together"):
        TLS(cert=b"c")
    with pytest.raises(InvalidArgumentError, match=r"ca: cannot read .*none: No such file"):
        TLS(ca=tmp_path / "none").credentials()
    with pytest.raises(InvalidArgumentError) as caught:
        TLS(cert="-----BEGIN CERTIFICATE-----", key="-----BEGIN PRIVATE KEY-----").credentials()
    assert str(caught.value) == "cert: contains an invalid certificate; check that it is complete"


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_invalid_timeouts_are_rejected(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        AsyncClient(timeout=timeout)
