"""Protobuf messages of google.rpc and grpc.health.v1.

They are built at run time in a private descriptor pool. The published packages
would be two more dependencies, and they register in protobuf's default pool, where
two packages with the same file conflict.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["message_class"]

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}

# Package → message → fields, as "name:type[*]=number". "*" means repeated; "map" is
# map<string, string>. Only the fields that the library reads: protobuf skips the
# others. The health status is an open enum, which has the wire format of an int32.
_SCHEMA: dict[str, dict[str, tuple[str, ...]]] = {
    "google.rpc": {
        "Any": ("type_url:string=1", "value:bytes=2"),
        "Status": ("code:int32=1", "message:string=2", "details:Any*=3"),
        "ErrorInfo": ("reason:string=1", "domain:string=2", "metadata:map=3"),
        "FieldViolation": ("field:string=1", "description:string=2", "reason:string=3"),
        "BadRequest": ("field_violations:FieldViolation*=1",),
        "Violation": ("type:string=1", "subject:string=2", "description:string=3"),
        "PreconditionFailure": ("violations:Violation*=1",),
        "Duration": ("seconds:int64=1", "nanos:int32=2"),
        "RetryInfo": ("retry_delay:Duration=1",),
        "RequestInfo": ("request_id:string=1", "serving_data:string=2"),
    },
    "grpc.health.v1": {
        "HealthCheckRequest": ("service:string=1",),
        "HealthCheckResponse": ("status:int32=1",),
    },
}


@cache
def message_class(full_name: str) -> Any:
    """Return the class of a protobuf message, for example `google.rpc.Status`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for package, messages in _SCHEMA.items():
        pool.Add(_file(package, messages))  # type: ignore[no-untyped-call,unused-ignore]
    return pool


def _file(package: str, messages: dict[str, tuple[str, ...]]) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"sagastore/private/{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for text in fields:
            _add_field(message, package, text)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, package: str, text: str) -> None:
    name, _, rest = text.partition(":")
    kind, _, number = rest.partition("=")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.endswith("*"):
        kind = kind[:-1]
        field.label = _Field.LABEL_REPEATED
    if kind == "map":
        field.label = _Field.LABEL_REPEATED
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, package, "key:string=1")
        _add_field(entry, package, "value:string=2")
        kind = f"{message.name}.{entry.name}"
    if kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{package}.{kind}"
