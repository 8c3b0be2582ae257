"""Request decoder that names the fields that are not valid UTF-8, with bounded work.

Protobuf rejects a request with a string that is not UTF-8, such as a lone surrogate, without
naming the field, and gRPC answers INTERNAL. In that case this module reads the request again,
names the invalid strings and replaces them, so that one of them does not fail a batch of a
thousand messages.

That is Python code, and takes about a microsecond for each field. So is the parser of protobuf
slow, and takes a hundred times the memory, for a request of millions of fields. Therefore a large
request is parsed on the event loop only if it has few fields (`has_few_fields`). `examine` decides
about the others in a worker process, and rejects those of a shape that no valid request has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from sagastore_server.storage.errors import Violation
from sagastore_server.storage.validation import MAX_BATCH

LARGE = 64 * 1024
"""Bytes from which a request is examined before it is parsed. A smaller one has at most 32,768
fields, which are examined in about 30 ms."""

_FEW = 2_000
"""Fields that are counted on the event loop, which takes about 2 ms."""

_MOST = 600_000
"""Fields of a request: a batch of 1000 messages with 512 tags has about 525,000."""

_SHOWN = 10
"""Invalid strings that are named in a request that fails as a whole."""

_MOST_INVALID = 20_000
"""Invalid strings that are named in a batch. A batch with more fails as a whole."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NOT_UTF8 = "is not valid UTF-8 (a lone surrogate is not a character)"

Decoder = Callable[[bytes], "Message | InvalidText"]


class InvalidText(NamedTuple):
    """A request that protobuf rejects."""

    violations: tuple[Violation, ...]
    """At least one violation."""
    repaired: Message | None
    """The request with ``?`` for each byte of an invalid string; None if it is not protobuf, or if
    not every invalid string was looked for."""


def by_entry(violations: Sequence[Violation], field: str) -> dict[int, list[Violation]]:
    """Return the violations within the entries of a repeated field, by the index of the entry."""
    found: dict[int, list[Violation]] = {}
    for path, reason in violations:
        head, _, name = path.partition("].")
        index = int(head.removeprefix(f"{field}["))
        found.setdefault(index, []).append(Violation(name, reason))
    return found


def merged(unreadable: Sequence[Violation], found: Sequence[Violation]) -> list[Violation]:
    """Add the violations of the other fields. An unreadable field was replaced by ``?``."""
    fields = {violation.field for violation in unreadable}
    return [*unreadable, *(one for one in found if one.field not in fields)]


class _TooManyError(Exception):
    """The request has more fields, or more of one kind, than allowed."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.violation = Violation(field, reason)


def decoder(request_type: type[Message], *, repair: bool = False) -> Decoder:
    """Return a function that parses a request of ``request_type`` and never raises.

    With ``repair``, invalid strings are replaced; otherwise only the first of them are named.
    """
    parse = request_type.FromString

    def decode(data: bytes) -> Message | InvalidText:
        try:
            return parse(data)
        except DecodeError:
            return _diagnose(request_type, data, repair=repair)

    return decode


def has_few_fields(request_type: type[Message], data: bytes) -> bool:
    """Return whether ``data`` has so few fields that it can be parsed on the event loop."""
    walk = _Walk(data, most_fields=_FEW, most_invalid=_SHOWN, check_text=False)
    try:
        walk.message(_descriptor(request_type), (0, len(data)), "")
    except (_TooManyError, ValueError):
        return False
    return True


def examine(request_type: type[Message], data: bytes, repair: bool) -> InvalidText | None:
    """Return why a request with many fields is rejected, or None if it can be parsed.

    Takes up to a second, so it is for a worker process.
    """
    walk = _Walk(data, most_fields=_MOST, most_invalid=_SHOWN, check_text=False)
    try:
        walk.message(_descriptor(request_type), (0, len(data)), "")
        request_type.FromString(data)
    except _TooManyError as exc:
        return InvalidText((exc.violation,), None)
    except ValueError:
        return _unreadable(request_type)
    except DecodeError:
        return _diagnose(request_type, data, repair=repair)
    return None


def _diagnose(request_type: type[Message], data: bytes, *, repair: bool) -> InvalidText:
    most_invalid = _MOST_INVALID if repair else _SHOWN
    walk = _Walk(data, most_fields=_MOST, most_invalid=most_invalid, check_text=True)
    complete = True
    try:
        walk.message(_descriptor(request_type), (0, len(data)), "")
    except _TooManyError:
        complete = False
    except ValueError:
        return _unreadable(request_type)
    violations = tuple(Violation(path, _NOT_UTF8) for path, _, _ in walk.invalid[:most_invalid])
    if not violations:
        return _unreadable(request_type)
    if not repair:
        return InvalidText(violations, None)
    if not complete:
        return InvalidText(violations[:_SHOWN], None)
    readable = bytearray(data)
    for _, start, end in walk.invalid:
        readable[start:end] = b"?" * (end - start)
    try:
        repaired = request_type.FromString(bytes(readable))
    except DecodeError:
        return _unreadable(request_type)
    return InvalidText(violations, repaired)


def _descriptor(request_type: type[Message]) -> Descriptor:
    return cast("Descriptor", request_type.DESCRIPTOR)


def _unreadable(request_type: type[Message]) -> InvalidText:
    name = _descriptor(request_type).full_name
    return InvalidText((Violation("request", f"is not a valid {name}"),), None)


class _Walk:
    """Reads the fields of a serialized message, up to limits."""

    def __init__(
        self, data: bytes, *, most_fields: int, most_invalid: int, check_text: bool
    ) -> None:
        self._data = data
        self._fields_left = most_fields
        self._most_invalid = most_invalid
        self._check_text = check_text
        self.invalid: list[tuple[str, int, int]] = []
        """Path, start and end of each string that is not UTF-8."""

    def message(self, descriptor: Descriptor, span: tuple[int, int], prefix: str) -> None:
        """Read ``data[span]``.

        Raises:
            ValueError: The data is not a protobuf message.
            _TooManyError: It has more fields than allowed.

        """
        seen: dict[int, int] = {}
        at, end = span
        while at < end:
            tag, at = _varint(self._data, at, end)
            number, start = tag >> 3, at
            at, start = _skip(tag & 7, self._data, at, end)
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _TooManyError("request", f"has more than {_MOST:,} fields")
            field = descriptor.fields_by_number.get(number)
            if field is not None and tag & 7 == _BYTES:
                self._value(field, (start, at), prefix, seen)

    def _value(
        self, field: FieldDescriptor, span: tuple[int, int], prefix: str, seen: dict[int, int]
    ) -> None:
        path = prefix + field.name
        if field.is_repeated:
            index = seen.get(field.number, 0)
            seen[field.number] = index + 1
            if index >= MAX_BATCH and not self._check_text:
                raise _TooManyError(path, f"has more than {MAX_BATCH:,} entries")
            path += f"[{index}]"
        if field.message_type is not None:
            self.message(field.message_type, span, path + ".")
        elif self._check_text and field.type == FieldDescriptor.TYPE_STRING:
            self._text(path, *span)

    def _text(self, path: str, start: int, end: int) -> None:
        if _is_utf8(self._data[start:end]):
            return
        self.invalid.append((path, start, end))
        if len(self.invalid) > self._most_invalid:
            raise _TooManyError(path, _NOT_UTF8)


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
