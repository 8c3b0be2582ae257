"""Client certificates: refuses those that have expired since the TLS handshake.

TLS checks the dates of a certificate once, when a connection begins. A connection may last for
hours, and the certificate expire meanwhile.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from sagastore_server.interfaces.errors import UnauthenticatedError

_KEY = "x509_pem_cert"
"""Property of gRPC's authentication context: the certificate in PEM."""

_MOST = 1_000
"""Certificates whose end is remembered; the least recently used one is forgotten."""


class ClientCertificates:
    """Checks the end of validity of client certificates. Belongs to one event loop."""

    def __init__(
        self, end_of: Callable[[bytes], float], clock: Callable[[], float] = time.time
    ) -> None:
        """Check certificates against ``clock``, in seconds since 1970.

        ``end_of`` returns the end of validity of a certificate in PEM.
        """
        self._end_of = end_of
        self._clock = clock
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def check(self, properties: Mapping[str, Any]) -> None:
        """Check the certificate of a call, given gRPC's authentication context.

        Raises:
            UnauthenticatedError: The certificate has expired.

        """
        for certificate in properties.get(_KEY, ()):
            if self._end(certificate) <= self._clock():
                raise UnauthenticatedError(
                    "the client certificate has expired since the connection began; renew it, and "
                    "reconnect"
                )

    def _end(self, certificate: bytes) -> float:
        end = self._ends.get(certificate)
        if end is None:
            end = self._end_of(certificate)
            self._ends[certificate] = end
            if len(self._ends) > _MOST:
                self._ends.popitem(last=False)
        else:
            self._ends.move_to_end(certificate)
        return end
