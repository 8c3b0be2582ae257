"""The checker of the load tests and the simulation detects a wrong order of storage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sagastore import Message
from tests.support.checker import Asked, Checker, Value, WrongAnswerError

THEN = datetime(2030, 1, 1, tzinfo=UTC)
SESSION = Asked(session_id="s")


def _value(content: str) -> Value:
    return Value("p", "user", content, (), THEN, "{}", "s")


def _saved(checker: Checker, id: str, revision: int, content: str = "x") -> None:
    value = _value(content)
    checker.acknowledge(id, checker.attempt(id, value), value, revision)


def _deleted(checker: Checker, id: str) -> None:
    checker.acknowledge(id, checker.attempt(id, None), None)


def _shown(id: str, revision: int, sequence: int, content: str = "x") -> Message:
    return Message(
        "p", "user", content, id=id, timestamp=THEN, session_id="s", created_at=THEN,
        revision=revision, sequence=sequence,
    )  # fmt: skip


def _listed(checker: Checker, *messages: Message) -> None:
    scan = checker.scan(SESSION, place=lambda one: (one.timestamp, one.sequence))
    scan.page(messages)
    scan.end()


@pytest.fixture
def checker() -> Checker:
    """Return a checker of two messages, one stored after the other."""
    checker = Checker()
    _saved(checker, "b", 1)
    _saved(checker, "a", 2)
    return checker


def test_order_of_storage_is_accepted(checker: Checker) -> None:
    _listed(checker, _shown("b", 1, 1), _shown("a", 2, 2))
    _saved(checker, "b", 3, "replaced")
    _listed(checker, _shown("b", 3, 1, "replaced"), _shown("a", 2, 2))
    _deleted(checker, "b")
    _saved(checker, "b", 5, "again")
    _listed(checker, _shown("a", 2, 2), _shown("b", 5, 5, "again"))


def test_lower_sequence_of_later_message_is_wrong(checker: Checker) -> None:
    with pytest.raises(WrongAnswerError, match="a has a lower sequence than b"):
        _listed(checker, _shown("a", 2, 1), _shown("b", 1, 2))


def test_concurrent_saves_may_have_either_order() -> None:
    checker = Checker()
    values = {id: _value("x") for id in "ab"}
    numbers = {id: checker.attempt(id, value) for id, value in values.items()}
    for revision, id in enumerate("ba", 1):
        checker.acknowledge(id, numbers[id], values[id], revision)
    _listed(checker, _shown("b", 1, 1), _shown("a", 2, 2))


def test_list_by_id_is_wrong(checker: Checker) -> None:
    with pytest.raises(WrongAnswerError, match="out of order"):
        _listed(checker, _shown("a", 2, 2), _shown("b", 1, 1))


def test_replacement_with_another_sequence_is_wrong(checker: Checker) -> None:
    _listed(checker, _shown("b", 1, 1), _shown("a", 2, 2))
    _saved(checker, "b", 3, "replaced")
    with pytest.raises(WrongAnswerError, match="sequence has changed from 1 to 3"):
        _listed(checker, _shown("a", 2, 2), _shown("b", 3, 3, "replaced"))


def test_sequence_of_before_a_deletion_is_wrong(checker: Checker) -> None:
    _listed(checker, _shown("b", 1, 1), _shown("a", 2, 2))
    _deleted(checker, "b")
    _saved(checker, "b", 5, "again")
    with pytest.raises(WrongAnswerError, match="sequence 1 is that of before the deletion"):
        _listed(checker, _shown("b", 5, 1, "again"), _shown("a", 2, 2))
