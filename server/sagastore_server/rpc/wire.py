"""Request decoder that names the fields that are not valid UTF-8.

Protobuf rejects a request with a string that is not UTF-8, such as a lone surrogate, without
naming the field, and gRPC answers INTERNAL. In that case this module reads the request again,
names the invalid strings and replaces them, so that one of them does not fail a batch of a
thousand messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from sagastore_server.storage.errors import Violation

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NOT_UTF8 = "is not valid UTF-8 (a lone surrogate is not a character)"


class InvalidText(NamedTuple):
    """A request that protobuf rejects."""

    violations: tuple[Violation, ...]
    """At least one violation."""
    repaired: Message | None
    """The request with ``?`` for each byte of an invalid string; None if it is not protobuf."""


def decoder(request_type: type[Message]) -> Callable[[bytes], Message | InvalidText]:
    """Return a function that parses a request of ``request_type`` and never raises."""
    parse = request_type.FromString

    def decode(data: bytes) -> Message | InvalidText:
        try:
            return parse(data)
        except DecodeError:
            return _diagnose(request_type, data)

    return decode


def _diagnose(request_type: type[Message], data: bytes) -> InvalidText:
    broken: list[tuple[str, int, int]] = []
    descriptor = cast("Descriptor", request_type.DESCRIPTOR)
    name = descriptor.full_name
    unreadable = InvalidText((Violation("request", f"is not a valid {name}"),), None)
    try:
        _walk(descriptor, data, (0, len(data)), "", broken)
    except ValueError:
        return unreadable
    readable = bytearray(data)
    for _, start, end in broken:
        readable[start:end] = b"?" * (end - start)
    try:
        repaired = request_type.FromString(bytes(readable))
    except DecodeError:
        return unreadable
    violations = tuple(Violation(path, _NOT_UTF8) for path, _, _ in broken)
    return InvalidText(violations, repaired) if violations else unreadable


def _walk(
    descriptor: Descriptor,
    data: bytes,
    span: tuple[int, int],
    prefix: str,
    broken: list[tuple[str, int, int]],
) -> None:
    """Append path, start and end of each invalid string in ``data[span]`` to ``broken``.

    Raises:
        ValueError: The data is not a protobuf message.

    """
    seen: dict[int, int] = {}
    at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        number, start = tag >> 3, at
        at, start = _skip(tag & 7, data, at, end)
        field = descriptor.fields_by_number.get(number)
        if field is None or tag & 7 != _BYTES:
            continue
        path = prefix + field.name
        if field.is_repeated:
            path += f"[{seen.setdefault(number, 0)}]"
            seen[number] += 1
        if field.message_type is not None:
            _walk(field.message_type, data, (start, at), path + ".", broken)
        elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(data[start:at]):
            broken.append((path, start, at))


def _skip(kind: int, data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the end of a value, and its start (after its length, if it has one)."""
    start = at
    if kind == _VARINT:
        _, at = _varint(data, at, end)
    elif kind == _BYTES:
        length, start = _varint(data, at, end)
        at = start + length
    elif kind in {_FIXED64, _FIXED32}:
        at += 8 if kind == _FIXED64 else 4
    else:
        raise ValueError(f"wire type {kind}")
    if at > end:
        raise ValueError("cut off")
    return at, start


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not a varint")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
