"""Calls of StorageService through a forwarder: the tests of a single server, on the other address.

The forwarder knows the address of the holder, and needs no PostgreSQL for that.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from sagastore.v1 import storage_pb2_grpc
from tests.e2e import test_storage_rpcs
from tests.support.ports import ReservedPort
from tests.support.server_process import ServerProcess

TOO_LONG = {"test_any_text_is_a_valid_query"}
"""Tests of what the holder does, which take seconds."""

# Those of an empty server, about Export, are left out.
globals().update(
    {
        name: test
        for name, test in vars(test_storage_rpcs).items()
        if name.startswith("test_")
        and name not in TOO_LONG
        and "storage" in inspect.signature(test).parameters
    }
)


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[storage_pb2_grpc.StorageServiceStub]:
    """Call a forwarder of this module."""
    folder = tmp_path_factory.mktemp("forwarding")
    holder = ServerProcess(folder / "sagastore.db")
    unused = ReservedPort()
    try:
        holder.start()
        forwarder = ServerProcess(
            folder / "none.db",
            *("--forward", "--forward-to", holder.address),
            postgres=f"postgresql://user@{unused.address}/nothing",
        )
        try:
            forwarder.spawn()
            forwarder.wait_for_event("forwarding")
            with forwarder.channel() as channel:
                yield storage_pb2_grpc.StorageServiceStub(channel)
            assert forwarder.terminate() == 0
        finally:
            forwarder.close()
    finally:
        holder.close()
        unused.close()
