"""Decoder of requests that protobuf rejects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagastore.v1 import storage_pb2
from sagastore_server.rpc.wire import InvalidText, decoder

decode = decoder(storage_pb2.BulkSaveRequest, repair=True)


def broken(data: bytes) -> InvalidText:
    result = decode(data)
    assert isinstance(result, InvalidText)
    return result


def test_valid_request_is_parsed() -> None:
    request = storage_pb2.BulkSaveRequest(sequence=3)
    assert decode(request.SerializeToString()) == request


def test_invalid_strings_are_reported_and_replaced() -> None:
    request = storage_pb2.BulkSaveRequest(sequence=-1, on_conflict=storage_pb2.ON_CONFLICT_SKIP)
    request.messages.add(id="fine", content="ünï", tags=["a"])
    request.messages.add(id="XXXX", tags=["a", "XXXX", "XXXX"]).timestamp.seconds = 5
    data = request.SerializeToString().replace(b"XXXX", b"\xed\xbf\xbfX")
    result = broken(data)
    assert [violation.field for violation in result.violations] == [
        "messages[1].id",
        "messages[1].tags[1]",
        "messages[1].tags[2]",
    ]
    request.messages[1].id = "????"
    request.messages[1].tags[1:] = ["????", "????"]
    assert result.repaired == request


def test_unknown_fields_of_every_type_are_skipped() -> None:
    request = storage_pb2.BulkSaveRequest()
    request.messages.add(id="XXXX")
    unknown = (
        b"\xf8\x07\x01" + b"\xf9\x07" + bytes(8) + b"\xfa\x07\x02\xff\xff" + b"\xfd\x07" + bytes(4)
    )
    data = unknown + request.SerializeToString().replace(b"XXXX", b"\xffXXX")
    assert [violation.field for violation in broken(data).violations] == ["messages[0].id"]


def test_unparsable_bytes_are_reported() -> None:
    for data in (b"\xff", b"\x0b", b"\x12\x7f", b"\x80" * 11, b"\x12\x02\x0a\x05"):
        result = broken(data)
        assert [violation.field for violation in result.violations] == ["request"]
        assert result.repaired is None


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_reported(data: bytes) -> None:
    result = decode(data)
    if isinstance(result, InvalidText):
        assert result.violations


@given(st.data())
def test_corrupted_request_is_parsed_or_reported(data: st.DataObject) -> None:
    request = storage_pb2.BulkSaveRequest(sequence=1)
    for number in range(3):
        request.messages.add(id=str(number), content="content", tags=["a", "b"], session_id="s")
    raw = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    result = decode(bytes(raw))
    if isinstance(result, InvalidText):
        assert result.violations
