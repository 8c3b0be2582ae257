"""Generator of requests from the protocol's descriptors, as bytes.

Bytes can represent what generated code would never write, such as strings that are not UTF-8,
unknown fields, or a field with the wire type of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from sagastore.v1 import storage_pb2
from sagastore_server.rpc import requests
from sagastore_server.rpc.page_tokens import request_key
from sagastore_server.storage.errors import InvalidRequestError
from tools.fuzz.values import INTEGERS, NANOS, SECONDS, Values

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TEXTS = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
_NUMBERS_UNKNOWN = (19, 99, 15_000, 536_870_911)
_LARGEST = 4 * 1024 * 1024
"""Approximate maximum bytes of a repeated field. Thousands of messages with thousands of long tags
each would be gigabytes, which block the sending client and test nothing in the server.
"""


def varint(value: int) -> bytes:
    """Return ``value`` in protobuf's encoding; a negative value takes 64 bits."""
    value &= (1 << 64) - 1
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def tagged(number: int, wire_type: int, value: bytes) -> bytes:
    """Return an encoded field."""
    length = varint(len(value)) if wire_type == _BYTES else b""
    return varint(number << 3 | wire_type) + length + value


class Generator:
    """Generates requests of any type, from valid to malformed."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._values = Values(rng)

    def request(self, descriptor: Descriptor) -> bytes:
        """Return a request; nearly half of them are valid, the others have malformed fields."""
        odd = self._rng.choices((0.0, 0.08, 0.5), weights=(45, 35, 20))[0]
        made = self.message(descriptor, odd)
        if self._values.chance(0.12):
            made = _with_token(descriptor, made, self._values)
        return made

    def message(self, descriptor: Descriptor, odd: float) -> bytes:
        """Return a message in which each field is malformed with probability ``odd``."""
        fields = [part for field in descriptor.fields for part in self._field(field, odd)]
        if odd and self._values.chance(odd / 2):
            fields.append(self._unknown())
        if odd and self._values.chance(odd / 4):
            self._rng.shuffle(fields)
        return b"".join(fields)

    def _field(self, field: FieldDescriptor, odd: float) -> Iterator[bytes]:
        is_odd = self._values.chance(odd)
        if self._values.chance(self._left_out(field)):
            return
        if is_odd and self._values.chance(0.06):
            yield self._of_another_type(field)
            return
        count = self._count(field, is_odd) if field.is_repeated else 1
        if is_odd and not field.is_repeated and self._values.chance(0.1):
            count = 2
        few = [self._value(field, odd, is_odd) for _ in range(min(count, 8))]
        room = _LARGEST
        for index in range(count):
            value = few[index % len(few)]
            yield value
            room -= len(value)
            if room < 0:
                return

    def _left_out(self, field: FieldDescriptor) -> float:
        """Return the probability that the field is not set; small for required fields."""
        if field.name in {"messages", "message", "ids", "content", "provider", "role", "id"}:
            return 0.03
        if field.name in {"if_revision", "page_token", "resume_token"}:
            return 0.9
        return 0.6

    def _count(self, field: FieldDescriptor, is_odd: bool) -> int:
        if is_odd and self._values.chance(0.15):
            return self._rng.choice((513, 1000, 1001, 3000))
        return self._rng.randint(1, 4)

    def _value(self, field: FieldDescriptor, odd: float, is_odd: bool) -> bytes:
        if field.message_type is not None:
            return tagged(field.number, _BYTES, self._inner(field.message_type, odd, is_odd))
        if field.type in _TEXTS:
            text = self._hostile(field) if is_odd else self._plain(field).encode()
            return tagged(field.number, _BYTES, text)
        return tagged(field.number, _VARINT, varint(self._number(field, is_odd)))

    def _inner(self, descriptor: Descriptor, odd: float, is_odd: bool) -> bytes:
        if descriptor.full_name != "google.protobuf.Timestamp":
            return self.message(descriptor, odd)
        if is_odd:
            seconds, nanos = self._rng.choice(SECONDS), self._rng.choice(NANOS)
        else:
            seconds, nanos = self._rng.randrange(2 * 10**9), self._rng.randrange(10**6) * 1000
        return tagged(1, _VARINT, varint(seconds)) + tagged(2, _VARINT, varint(nanos))

    def _number(self, field: FieldDescriptor, is_odd: bool) -> int:
        if is_odd:
            return self._rng.choice(INTEGERS)
        if field.enum_type is not None:
            return self._rng.choice([value.number for value in field.enum_type.values])
        if field.name in {"page_size", "batch_size"}:
            return self._rng.choice((0, 1, 3, 50, 500))
        return self._rng.randrange(4)

    def _plain(self, field: FieldDescriptor) -> str:
        made: dict[str, Callable[[], str]] = {
            "id": self._values.id,
            "ids": self._values.id,
            "provider": lambda: self._rng.choice(("openai", "google", "groq")),
            "role": lambda: self._rng.choice(("user", "assistant", "tool")),
            "content": self._values.sentence,
            "query": self._values.query,
            "metadata_json": self._values.metadata,
            "session_id": lambda: f"s-{self._rng.randrange(20)}",
            "page_token": str,
            "resume_token": str,
            "service": lambda: "sagastore.v1.StorageService",
            "file_containing_symbol": lambda: "sagastore.v1.StorageService",
            "file_by_filename": lambda: "sagastore/v1/storage.proto",
        }
        return made.get(field.name, self._values.word)()

    def _hostile(self, field: FieldDescriptor) -> bytes:
        if field.name == "metadata_json":
            return self._values.hostile_json()
        if field.name == "query" and self._values.chance(0.7):
            return self._values.query().encode()
        return self._values.hostile_text()

    def _of_another_type(self, field: FieldDescriptor) -> bytes:
        wire_type = self._rng.choice((_VARINT, _FIXED64, _BYTES, _FIXED32))
        return tagged(field.number, wire_type, self._of_type(wire_type))

    def _unknown(self) -> bytes:
        number = self._rng.choice(_NUMBERS_UNKNOWN)
        if self._values.chance(0.2):
            # A group nested to the given depth; parsers have a limit.
            depth = self._rng.choice((1, 90, 5000))
            return varint(number << 3 | 3) * depth + varint(number << 3 | 4) * depth
        wire_type = self._rng.choice((_VARINT, _FIXED64, _BYTES, _FIXED32))
        return tagged(number, wire_type, self._of_type(wire_type))

    def _of_type(self, wire_type: int) -> bytes:
        if wire_type == _VARINT:
            return varint(self._rng.choice(INTEGERS))
        if wire_type == _BYTES:
            return self._rng.randbytes(self._rng.randrange(40))
        return self._rng.randbytes(8 if wire_type == _FIXED64 else 4)

    def mutated(self, payload: bytes) -> bytes:
        """Return ``payload`` with bytes changed, removed, duplicated or inserted."""
        made = bytearray(payload)
        for _ in range(self._rng.choice((1, 1, 2, 5))):
            at = self._rng.randrange(len(made) + 1)
            kind = self._rng.randrange(6)
            if kind == 0:
                del made[at:]
            elif kind == 1:
                made[at:at] = self._rng.randbytes(self._rng.randint(1, 8))
            elif kind == 2:
                end = at + self._rng.randint(1, 16)
                made[at:at] = made[at:end]
            elif kind == 3:
                made[at : at + 1] = bytes([self._rng.choice((0, 0x7F, 0x80, 0xFF))])
            elif kind == 4:
                del made[at : at + self._rng.randint(1, 8)]
            elif at < len(made):
                made[at] ^= 1 << self._rng.randrange(8)
        return bytes(made)


def _with_token(descriptor: Descriptor, made: bytes, values: Values) -> bytes:
    """Add a token, often one forged for this request."""
    field = descriptor.fields_by_name.get("page_token")
    field = field or descriptor.fields_by_name.get("resume_token")
    if field is None:
        return made
    return made + tagged(field.number, _BYTES, values.token(_key(descriptor.name, made)).encode())


def _key(name: str, made: bytes) -> bytes:
    """Return the key that the service binds the tokens of a request to."""
    try:
        if name == "ListRequest":
            listed = storage_pb2.ListRequest.FromString(made)
            return request_key("List", listed.session_id, listed.newest_first)
        if name == "SearchRequest":
            search = storage_pb2.SearchRequest.FromString(made)
            return request_key("Search", *requests.search(search).fingerprint(search.query))
    except (DecodeError, InvalidRequestError):
        return b""
    return request_key(name.removesuffix("Request"))
