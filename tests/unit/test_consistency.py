"""Consistency: text form of positions, requirements of calls, and the RPCs with these fields."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator

import asyncpg
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st

from sagastore.v1 import file_pb2, message_pb2, session_pb2, storage_pb2
from sagastore_server.interfaces import consistency
from sagastore_server.interfaces.access import Role
from sagastore_server.interfaces.call_context import begin
from sagastore_server.interfaces.consistency import (
    LATEST,
    Consistency,
    Level,
    WalPosition,
    decoded,
)
from sagastore_server.postgresql.errors import is_connection_loss, is_demotion
from sagastore_server.postgresql.requirements import check, resolved
from sagastore_server.rpc.admission import required_role
from sagastore_server.rpc.consistency import (
    position_writer,
    required_by,
    requirement_reader,
    token_of,
)
from sagastore_server.rpc.page_tokens import decode, encode, request_key
from sagastore_server.storage.errors import InvalidRequestError, UnavailableError

UINT64, UINT32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
POSITIONS = st.builds(WalPosition, UINT64, UINT32, UINT64)
BASE64 = st.text("ABCDEFGHabcdefgh0123456789-_+/=.é\x00", min_size=26, max_size=30)
HERE = WalPosition(7, 3, 500)


# ------------------------------------------------------------------ text


@given(POSITIONS)
def test_position_round_trips(position: WalPosition) -> None:
    assert decoded(position.encoded()) == position
    assert position.encoded().isascii()


@given(BASE64 | st.text(max_size=40) | st.binary(max_size=40).map(lambda b: b.hex()))
def test_other_text_is_no_position(text: str) -> None:
    try:
        position = decoded(text)
    except ValueError:
        return
    # Only the spelling of `encoded` is valid.
    assert position.encoded() == text


@given(POSITIONS, st.integers(0, 255), st.integers(0, 4))
def test_other_version_or_length_is_no_position(
    position: WalPosition, version: int, more: int
) -> None:
    raw = struct.pack(">BQIQ", version, *position) + b"\0" * more
    for one in (raw, raw[:-1], raw[1:]):
        text = base64.urlsafe_b64encode(one).decode()
        for spelling in {text, text.rstrip("="), text + "=", text + "\n", " " + text}:
            if (version, spelling) != (1, position.encoded()):
                with pytest.raises(ValueError, match="not a position"):
                    decoded(spelling)


def test_other_alphabet_of_base64_is_no_position() -> None:
    text = WalPosition(2**64 - 1, 2**32 - 1, 2**64 - 2).encoded()
    assert decoded(text).lsn == 2**64 - 2
    with pytest.raises(ValueError, match="not a position"):
        decoded(text.replace("_", "/").replace("-", "+"))


# ------------------------------------------------------------------ requirements


@given(st.text(max_size=60))
def test_bad_text_of_a_request_is_one_violation(text: str) -> None:
    wanted = message_pb2.Consistency(at_least=text)
    if not text:
        assert required_by(wanted) == LATEST
        return
    with pytest.raises(InvalidRequestError) as caught:
        required_by(wanted)
    (violation,) = caught.value.violations
    assert violation.field == "consistency.at_least"
    assert "\n" not in violation.reason


def test_requirements_of_requests() -> None:
    one = message_pb2.Consistency
    assert required_by(one()) == required_by(one(latest=True)) == required_by(one(latest=False))
    assert required_by(one()) == LATEST
    assert required_by(one(any_replica=False)).level is Level.ANY_REPLICA
    assert required_by(one(at_least=HERE.encoded())) == Consistency(Level.AT_LEAST, HERE)


async def _called(wanted: Consistency | None, *noted: WalPosition) -> Consistency:
    """Return the requirement of the next read of a call that has seen ``noted``."""

    async def run() -> Consistency:
        begin("sagastore.v1.StorageService/List")
        if wanted is not None:
            consistency.require(wanted)
        for position in noted:
            consistency.note(position)
        return consistency.required()

    return await asyncio.create_task(run())


async def test_later_read_of_a_call_is_never_older() -> None:
    early, late = HERE._replace(lsn=1), HERE._replace(timeline=4, lsn=1)
    for level in (Level.ANY_REPLICA, Level.AT_LEAST):
        wanted = Consistency(level, early if level is Level.AT_LEAST else None)
        assert await _called(wanted) == wanted
        assert await _called(wanted, HERE, late, early) == wanted._replace(seen=late)
    for latest in (None, LATEST):
        assert await _called(latest, HERE) == LATEST


async def test_call_with_an_unknown_position_has_none() -> None:
    """Another write of the call may tell one that does not include the write without one."""

    async def run(*noted: WalPosition | None) -> WalPosition | None:
        begin("sagastore.v1.StorageService/BulkSave")
        for position in noted:
            consistency.note(position)
        return consistency.noted()

    late = HERE._replace(lsn=501)
    assert await asyncio.create_task(run(HERE, late, HERE)) == late
    for order in ((None,), (None, HERE), (HERE, None), (HERE, None, late)):
        assert await asyncio.create_task(run(*order)) is None


def test_requirement_of_one_cluster() -> None:
    foreign, late = HERE._replace(system=8, lsn=9**9), HERE._replace(timeline=4, lsn=1)
    asked, replica = Consistency(Level.AT_LEAST, HERE), Consistency(Level.ANY_REPLICA)
    assert resolved(asked, 7) == asked
    assert resolved(replica, 7) == replica
    assert resolved(replica._replace(seen=HERE), 7) == asked
    assert resolved(asked._replace(seen=late), 7).position == late
    assert resolved(Consistency(Level.AT_LEAST, late, HERE), 7).position == late
    # A page of another cluster: the data was moved, and the token is still usable.
    assert resolved(replica._replace(seen=foreign), 7) == LATEST
    assert resolved(asked._replace(seen=foreign), 7) == LATEST
    for wanted in (Consistency(Level.AT_LEAST, foreign), asked._replace(position=foreign)):
        with pytest.raises(InvalidRequestError, match="another PostgreSQL"):
            resolved(wanted, 7)


def test_primary_reaches_earlier_positions_and_former_timelines() -> None:
    for least in (HERE, HERE._replace(lsn=499), HERE._replace(timeline=2, lsn=9**9)):
        check(least, HERE)
    with pytest.raises(UnavailableError, match="of timeline 4 of PostgreSQL") as later:
        check(HERE._replace(timeline=4, lsn=1), HERE)
    with pytest.raises(UnavailableError, match="beyond the end of the log") as beyond:
        check(HERE._replace(lsn=501), HERE)
    assert later.value.retry_after
    assert beyond.value.retry_after


def test_standby_that_refuses_a_wal_function_is_a_lost_primary() -> None:
    def error(function: str) -> BaseException:
        fields = {"C": "55000", "M": "recovery is in progress", "R": function}
        one: BaseException = asyncpg.PostgresError.new(fields)
        return one

    for name in ("pg_current_wal_flush_lsn", "pg_walfile_name"):
        assert is_demotion(error(name))
        assert is_connection_loss(error(name))
    assert not is_demotion(error("pg_replication_slot_advance"))


# ------------------------------------------------------------------ tokens

KEY = request_key("List", "session", False)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.text("ab\u00e9\u4e2d"), max_size=5), POSITIONS
)
def test_token_keeps_position(cursor: list[int | str], position: WalPosition) -> None:
    assert decode(KEY, encode(KEY, cursor, position), "page_token") == (tuple(cursor), position)


@given(st.data())
def test_altered_token_with_position_is_rejected(data: st.DataObject) -> None:
    token = encode(KEY, [1_700_000_000_000_000, 17], HERE)
    at = data.draw(st.integers(0, len(token) - 1))
    altered = token[:at] + data.draw(st.sampled_from("ABCabc019-_=.é")) + token[at + 1 :]
    if altered != token:
        with pytest.raises(InvalidRequestError):
            decode(KEY, altered, "page_token")


@given(st.binary(max_size=60))
def test_forged_token_with_position_is_rejected(text: bytes) -> None:
    """A caller can compute the digest, so the position is validated too."""
    from sagastore_server.rpc import page_tokens  # noqa: PLC0415 - the forger's view

    raw = b"\x03" + page_tokens._digest(KEY, text) + text
    with pytest.raises(InvalidRequestError):
        decode(KEY, base64.urlsafe_b64encode(raw).decode().rstrip("="), "page_token")


async def test_only_a_request_with_a_consistency_gets_a_token_with_a_position() -> None:
    async def token(wanted: Consistency | None) -> str:
        begin("sagastore.v1.StorageService/List")
        if wanted is not None:
            consistency.require(wanted)
        consistency.note(HERE)
        return token_of(KEY, (1, 2))

    # As servers of earlier versions return and accept it.
    assert await asyncio.create_task(token(None)) == encode(KEY, (1, 2))
    for wanted in (LATEST, Consistency(Level.ANY_REPLICA)):
        assert await asyncio.create_task(token(wanted)) == encode(KEY, (1, 2), HERE)


# ------------------------------------------------------------------ fields of the RPCs


def _methods() -> Iterator[MethodDescriptor]:
    for file in (storage_pb2, session_pb2, file_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def test_every_response_has_a_position_and_every_read_a_consistency() -> None:
    methods = list(_methods())
    assert len(methods) >= 18
    for method in methods:
        reads = required_role(method) is Role.READER
        assert (requirement_reader(method) is not None) is reads, method.full_name
        assert position_writer(method) is not None, method.full_name
