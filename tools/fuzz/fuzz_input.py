"""Fuzz inputs, which can be saved and replayed."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from sagastore.v1 import migration_pb2, storage_pb2

Metadata = tuple[tuple[str, str | bytes], ...]


class Method(NamedTuple):
    """RPC of the service."""

    path: str
    request: Descriptor
    takes_stream: bool
    gives_stream: bool
    endless: bool
    """Whether the stream continues until the caller ends it."""

    @property
    def label(self) -> str:
        """Short name for reports."""
        return self.path.rpartition(".")[2]


def _method(service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    return Method(
        f"/{service.full_name}/{method.name}",
        method.input_type,
        method.client_streaming,
        method.server_streaming,
        method.name in {"WatchMigration", "Watch"},
    )


_SERVICES: tuple[ServiceDescriptor, ...] = (
    storage_pb2.DESCRIPTOR.services_by_name["StorageService"],
    migration_pb2.DESCRIPTOR.services_by_name["MigrationService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
METHODS = {
    method.path: method
    for service in _SERVICES
    for method in (_method(service, one) for one in service.methods)
}
STORAGE = "/sagastore.v1.StorageService/"
MIGRATION = "/sagastore.v1.MigrationService/"
CHANGE_PHASE = f"{MIGRATION}ChangePhase"
_DRY_RUN = b"\x10\x01"
"""A field ``dry_run`` appended to a ChangePhaseRequest; the last occurrence counts."""


def harmless(method: str, payload: bytes) -> bytes:
    """Prevent inputs from changing the phase, which only the campaign may do."""
    return payload + _DRY_RUN if method == CHANGE_PHASE else payload


@dataclasses.dataclass(frozen=True)
class Input:
    """Input with everything needed to send it again.

    A call has ``method`` and ``payloads``. Raw bytes for a socket are ``steps``, pairs of an action
    and its argument: ``send`` bytes, send bytes ``slowly`` one by one, ``half-close``, ``listen``
    for some milliseconds or until the server has closed the connection or answered all streams,
    ``hold`` the connection for some milliseconds.
    """

    name: str
    """Position in the campaign."""
    kind: str
    method: str = ""
    payloads: tuple[bytes, ...] = ()
    metadata: Metadata = ()
    deadline: float = 30.0
    """Seconds."""
    behaviour: str = ""
    """Action besides waiting for the answer (``grpc_client``); empty: none."""
    after: float = 0.0
    """Seconds until that action."""
    crowd: int = 1
    """Number of identical concurrent calls."""
    as_stream: bool = False
    """Whether to call it as if it were a bidirectional stream."""
    gzip: bool = False
    steps: tuple[tuple[str, bytes | int], ...] = ()
    must_answer: bool = False
    """Whether raw bytes are a valid call, which must be answered."""

    @property
    def streams(self) -> bool:
        """Whether it is a call that sends a stream."""
        return self.as_stream or (self.method in METHODS and METHODS[self.method].takes_stream)

    @property
    def label(self) -> str:
        """Short name of the method for reports."""
        known = METHODS.get(self.method)
        return known.label if known else "(broken)" if self.steps else "(unknown)"


def save(one: Input, path: Path) -> None:
    """Write ``one`` to a file."""
    fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    path.write_text(json.dumps(fields, default=_encoded, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Input:
    """Read a file written by ``save``.

    Raises:
        ValueError: The file is not a fuzz input.
    """
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), object_hook=_decoded)
    try:
        fields["payloads"] = tuple(fields["payloads"])
        for name in ("metadata", "steps"):
            fields[name] = tuple((first, second) for first, second in fields[name])
        return Input(**fields)
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{path} is not a fuzz input: {exc}") from exc


def _encoded(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(type(value).__name__)


def _decoded(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if set(value) == {"base64"} else value
