"""TLS whose certificates change while the server runs."""

from __future__ import annotations

import grpc

from sagastore_server.interfaces.tls import TlsMaterial, TlsSource


def server_credentials(source: TlsSource) -> grpc.ServerCredentials:
    """Return credentials that have what ``source`` tells at each handshake.

    Clients must have a certificate if there are authorities for them when this is
    called, and are not asked for one otherwise. Connections that exist keep what they
    were made with. TLS 1.2 and later, and gRPC's ciphers.
    """
    first = in_force = source()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_force
        latest = source()
        if latest is in_force:
            return None
        in_force = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        fetch,  # type: ignore[arg-type] # The type that is published knows no None.
        require_client_authentication=first.client_ca is not None,
    )


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, material.client_ca)
