"""The port that workers share."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

from sagastore_server.config.address import Address
from sagastore_server.workers.port import PortError, SharedPort
from tests.support.ports import has_ipv6

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers need Linux")

LOCAL = Address("127.0.0.1", 0)


def listener(address: Address, *, shared: bool) -> socket.socket:
    """Listen as another process would."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    place = (address.host, address.port)
    return socket.create_server(place, family=family, reuse_port=shared)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])  # noqa: S104
def test_port_on_which_another_process_listens_is_refused(host: str, shared: bool) -> None:
    if host == "::" and not has_ipv6():
        pytest.skip("needs IPv6")
    with listener(LOCAL, shared=shared) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortError, match="in use"):
            SharedPort(Address(host, port))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])  # noqa: S104
def test_workers_share_the_port_and_others_do_not(host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("needs IPv6")
    with contextlib.closing(SharedPort(Address(host, 0))) as port:
        assert port.address.port
        with pytest.raises(PortError, match="in use"):
            SharedPort(port.address)
        place = port.address if ":" in host else port.address._replace(host="127.0.0.1")
        with (
            listener(place, shared=True),
            listener(place, shared=True),
            pytest.raises(OSError, match="in use"),
        ):
            listener(place, shared=False)


def test_port_can_be_used_again_while_old_connections_linger() -> None:
    with contextlib.closing(SharedPort(LOCAL)) as port:
        address = port.address
        with listener(address, shared=True) as server:
            client = socket.create_connection((address.host, address.port))
            accepted, _ = server.accept()
            # The side that closes first keeps the port for a minute (TIME_WAIT).
            accepted.close()
            assert client.recv(1) == b""
            client.close()
    with contextlib.closing(SharedPort(address)) as again:
        assert again.address == address


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PortError, match="no address of this machine"):
        SharedPort(Address("192.0.2.1", 0))
