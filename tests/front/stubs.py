"""Plain gRPC calls through the front."""

from __future__ import annotations

import grpc

from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.front.nginx import Front
from tests.security.pki import Pki


def stub(front: Front, pki: Pki) -> tuple[grpc.Channel, StorageServiceStub]:
    """Return a plain gRPC channel with a token, and a stub on it."""
    tls = grpc.ssl_channel_credentials(pki.ca.read_bytes())
    token = grpc.access_token_call_credentials("app-token")
    credentials = grpc.composite_channel_credentials(tls, token)
    channel = grpc.secure_channel(front.address, credentials)
    return channel, StorageServiceStub(channel)
