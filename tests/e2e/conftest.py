"""Stubs for a test's own server."""

from __future__ import annotations

import grpc
import pytest

from sagastore.v1 import storage_pb2_grpc


@pytest.fixture
def running_storage(channel: grpc.Channel) -> storage_pb2_grpc.StorageServiceStub:
    """Call StorageService of a server of the test's own."""
    return storage_pb2_grpc.StorageServiceStub(channel)
