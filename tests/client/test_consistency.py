"""Consistency of reads: its forms, the order of positions, and what a client remembers."""

from __future__ import annotations

import base64
import struct
import threading
from functools import reduce
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sagastore import AsyncClient, Client, Consistency, InvalidArgumentError, Reads
from sagastore._consistency import Positions, covering, newest
from sagastore_server.interfaces.consistency import WalPosition

SYSTEM = 7_400_000_000_000_000_001
OTHER_SYSTEM = SYSTEM + 1

timelines = st.integers(1, 2**32 - 1)
lsns = st.integers(0, 2**64 - 1)
positions = st.builds(WalPosition, st.just(SYSTEM), timelines | st.integers(1, 3), lsns)
foreign = st.builds(WalPosition, st.just(OTHER_SYSTEM), timelines, lsns)


def text(timeline: int, lsn: int, system: int = SYSTEM) -> str:
    return WalPosition(system, timeline, lsn).encoded()


def of_version(version: int, timeline: int = 1, lsn: int = 1) -> str:
    """Return a position in a format that the library does not know."""
    raw = struct.pack(">BQIQ", version, SYSTEM, timeline, lsn) + b"more"
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@given(positions, positions)
@example(WalPosition(SYSTEM, 1, 2**64 - 1), WalPosition(SYSTEM, 2, 0))
def test_positions_of_a_system_are_ordered_by_timeline_then_lsn(
    one: WalPosition, other: WalPosition
) -> None:
    expected = max(one, other, key=lambda p: (p.timeline, p.lsn)).encoded()
    assert newest(one.encoded(), other.encoded()) == expected
    assert newest(other.encoded(), one.encoded()) == expected


@given(st.lists(positions, min_size=1, max_size=4))
def test_newest_position_does_not_depend_on_the_order_of_responses(seen: list[WalPosition]) -> None:
    expected = max(seen).encoded()
    for order in permutations(seen):
        assert reduce(newest, (one.encoded() for one in order), "") == expected


@given(positions, foreign)
def test_position_of_another_system_replaces_the_known_one(
    one: WalPosition, other: WalPosition
) -> None:
    assert newest(one.encoded(), other.encoded()) == other.encoded()
    assert newest(other.encoded(), one.encoded()) == one.encoded()


@given(positions, st.integers(2, 255))
def test_position_of_an_unknown_version_replaces_the_known_one(
    one: WalPosition, version: int
) -> None:
    unknown = of_version(version)
    assert newest(one.encoded(), unknown) == unknown
    assert newest(unknown, of_version(version, lsn=0)) == of_version(version, lsn=0)
    assert newest(unknown, one.encoded()) == one.encoded()


@given(positions)
def test_response_without_a_position_changes_nothing(one: WalPosition) -> None:
    assert newest(one.encoded(), "") == one.encoded()
    assert newest("", one.encoded()) == one.encoded()
    assert newest("", "") == ""


@given(positions)
def test_consistency_accepts_its_own_text(one: WalPosition) -> None:
    exact = Consistency.at_least(one.encoded())
    assert exact == Consistency(one.encoded()) == Consistency(str(exact))
    assert exact.text == one.encoded()


@pytest.mark.parametrize(
    ("given_text", "meant"),
    [
        ("latest", Consistency.LATEST),
        ("", Consistency.LATEST),
        (" Latest ", Consistency.LATEST),
        ("any_replica", Consistency.ANY_REPLICA),
        ("any-replica", Consistency.ANY_REPLICA),
        ("ANY_REPLICA", Consistency.ANY_REPLICA),
    ],
)
def test_consistency_is_given_by_its_name(given_text: str, meant: Consistency) -> None:
    assert Consistency(given_text) == meant


def test_empty_position_requires_the_latest_state() -> None:
    assert Consistency.at_least("") == Consistency.LATEST


def test_misspelt_name_is_not_a_position() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Consistency("latets")
    line = "consistency: 'latets' is neither latest nor any_replica nor a position"
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["latest", "any_replica", "session", "x", " " * 28])
def test_at_least_accepts_no_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^position: '.*' is not a position$"):
        Consistency.at_least(name)


@pytest.mark.parametrize("form", [Reads.SESSION, "session", "SESSION"])
def test_reads_are_given_by_their_name(form: Reads | str) -> None:
    assert AsyncClient("127.0.0.1:1", reads=form).position == ""


def test_unknown_reads_are_named() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Client("127.0.0.1:1", reads="sesion")
    assert str(caught.value) == "reads: 'sesion' is not one of latest, session, any_replica"


@pytest.mark.parametrize(
    ("reads", "before", "after"),
    [
        (Reads.LATEST, "latest", "latest"),
        (Reads.ANY_REPLICA, "any_replica", "any_replica"),
        (Reads.SESSION, "latest", text(1, 5)),
    ],
)
def test_reads_require_what_the_client_has_seen(reads: Reads, before: str, after: str) -> None:
    seen = Positions(reads)
    assert seen.requirement(None).text == before
    seen.note(text(1, 5))
    assert seen.requirement(None).text == after
    assert seen.requirement(Consistency.ANY_REPLICA) == Consistency.ANY_REPLICA


@given(st.lists(positions, min_size=1, max_size=5), st.booleans())
def test_position_that_covers_several_is_the_newest_if_all_are_known(
    several: list[WalPosition], all_known: bool
) -> None:
    texts = [one.encoded() for one in several]
    assert covering([*texts, *([] if all_known else [""])]) == (
        max(several).encoded() if all_known else ""
    )
    assert covering([]) == ""


def test_state_that_is_not_known_requires_the_latest() -> None:
    seen = Positions(Reads.SESSION)
    seen.note(text(1, 5), seen.turn)
    early = seen.turn
    seen.note("", seen.turn)
    assert (seen.known, seen.requirement(None)) == ("", Consistency.LATEST)
    seen.note(text(1, 7), early)
    assert seen.known == "", "the call began before the state that is not known"
    seen.note(text(1, 8))
    assert seen.known == "", "the call did not see the latest state"
    seen.note(text(1, 6), seen.turn)
    assert seen.known == text(1, 8)


@given(st.lists(positions, min_size=1, max_size=40))
def test_threads_do_not_lose_a_position(given_positions: list[WalPosition]) -> None:
    seen = Positions(Reads.SESSION)
    start = threading.Barrier(4)

    def note(part: list[WalPosition]) -> None:
        start.wait()
        for one in part:
            seen.note(one.encoded())

    threads = [threading.Thread(target=note, args=(given_positions[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.known == max(given_positions).encoded()


def test_client_takes_positions_from_other_clients() -> None:
    client = Client("127.0.0.1:1")
    assert client.position == ""
    client.observe(text(1, 5))
    client.observe(text(1, 4))
    assert client.position == text(1, 5)
    client.observe("")
    assert client.position == "", "what the other client has seen is not known"
