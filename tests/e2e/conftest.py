"""Stubs of a server that belongs to one test."""

from __future__ import annotations

import grpc
import pytest

from sagastore.v1 import storage_pb2_grpc


@pytest.fixture
def running_storage(channel: grpc.Channel) -> storage_pb2_grpc.StorageServiceStub:
    """Return a stub of the test's server."""
    return storage_pb2_grpc.StorageServiceStub(channel)
