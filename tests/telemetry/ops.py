"""Client for the ops port."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.support.server_process import ServerProcess

ON = {"SAGASTORE_OPS_LISTEN": "127.0.0.1:0"}
"""Environment of a server with an ops port on any free port."""


class Answered(NamedTuple):
    """A response of the ops port."""

    status: int
    body: bytes

    @property
    def document(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)

    @property
    def reasons(self) -> list[str]:
        """Reasons why the server is not ready."""
        return [finding["reason"] for finding in self.document["reasons"]]


def get(address: str, path: str, method: str = "GET") -> Answered:
    """Send a request to the ops port at ``address``."""
    connection = http.client.HTTPConnection(address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return Answered(answer.status, answer.read())


def scrape(address: str) -> dict[str, float]:
    """Return all samples, as ``name{label="value",…}``."""
    text = get(address, "/metrics").body.decode()
    return {
        _series(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(address: str) -> set[str]:
    """Return the names of all samples."""
    return {series.partition("{")[0] for series in scrape(address)}


def ops_of(server: ServerProcess) -> str:
    """Return the address of the ops port of a running server."""
    address: str = server.wait_for_event("serving")["ops"]
    return address


def _series(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
