"""Handwritten traces that do or do not conform to the specification."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.spec.test_runner import needs_tlc
from tools.spec.trace import Result, TraceError, module_of, read, report, validate

Event = dict[str, Any]

BEGIN: Event = {"event": "begin", "rows": {"a": 1, "b": 2}, "revision": 2}
START_MARK = {"begun": True, "cursor": "", "complete": False}
MIDDLE_MARK = {"begun": True, "cursor": "a", "complete": False}
END_MARK = {"begun": True, "cursor": "b", "complete": True}


def event(kind: str, **fields: Any) -> Event:
    return {"event": kind, **{name.rstrip("_"): value for name, value in fields.items()}}


def state(phase: int, base: int = 2, *, completing: bool = False) -> Event:
    return event("state", phase=phase, completing=completing, base=base, rejournalled=False)


def started() -> list[Event]:
    return [BEGIN, event("launch", session=1), event("start", phase=1)]


def dual_write() -> list[Event]:
    """SQLITE_ONLY to DUAL_WRITE."""
    return [
        *started(),
        event("claim", session=1),
        event("gate", open=False),
        state(2),
        event("phase", phase=2),
        event("gate", open=True),
        event("inspect", applied=0),
        event("claim", session=1),
        event("set_phase", session=1, phase=2, applied=2),
        event("standing", standing="following"),
    ]


def backfill() -> list[Event]:
    """On to BACKFILL, and both rows are copied."""
    return [
        *dual_write(),
        state(3),
        event("phase", phase=3),
        event("page", ids=["a"], before=START_MARK, after=MIDDLE_MARK),
        event("page", ids=["b"], before=MIDDLE_MARK, after=END_MARK),
        event(
            "copy",
            session=1,
            before=START_MARK,
            after=MIDDLE_MARK,
            rows=[{"id": "a", "row": 1, "tomb": 0}],
        ),
        event("mark", before=START_MARK, after=MIDDLE_MARK),
        event(
            "copy",
            session=1,
            before=MIDDLE_MARK,
            after=END_MARK,
            rows=[{"id": "b", "row": 2, "tomb": 0}],
        ),
        event("mark", before=MIDDLE_MARK, after=END_MARK),
    ]


def read_postgres() -> list[Event]:
    """On to READ_POSTGRES, and PostgreSQL answers reads."""
    return [
        *backfill(),
        event("gate", open=False),
        state(4),
        event("phase", phase=4),
        event("set_phase", session=1, phase=4, applied=2),
        event("standing", standing="current"),
        event("gate", open=True),
    ]


def write(call: str, id: str, revision: int, *, delete: bool = False) -> list[Event]:
    return [
        event("enter", call=call, id=id, delete=delete),
        event("commit", call=call, id=id, revision=revision, delete=delete),
        event("committed", revision=revision),
    ]


def applied(after: int, upto: int, id: str, row: int, tomb: int = 0) -> list[Event]:
    rows = [{"id": id, "row": row, "tomb": tomb}]
    return [
        event("journal", after=after, upto=upto),
        event("apply", session=1, applied=upto, rows=rows),
        event("applied", applied=upto),
    ]


def ack(call: str, revision: int, *, both: bool) -> Event:
    return event("ack", call=call, revision=revision, both=both)


def answered(call: str, id: str, source: str, row: int) -> list[Event]:
    return [
        event("read", call=call, id=id),
        event("snapshot", call=call, from_=source, row=row),
        event("answer", call=call, row=row),
    ]


def last_step() -> list[Event]:
    return [
        *read_postgres(),
        event("gate", open=False),
        state(4, completing=True),
        event("phase", phase=4),
        event("finish", session=1),
        event("phase", phase=5),
        event("gate", open=True),
        event("standing", standing="detached"),
    ]


def checked(events: list[Event]) -> Result:
    return validate(read(json.dumps(event) for event in events))


ACCEPTED: dict[str, list[Event]] = {
    "dual write": [*dual_write(), *write("1", "a", 3), ack("1", 3, both=False)],
    "a deletion is applied": [
        *dual_write(),
        *write("1", "a", 3, delete=True),
        *applied(2, 3, "a", 0, 3),
        ack("1", 3, both=True),
    ],
    "confirmed by PostgreSQL": [
        *read_postgres(),
        *write("1", "a", 3),
        *applied(2, 3, "a", 3),
        ack("1", 3, both=True),
        *answered("2", "a", "target", 3),
    ],
    "fallen back": [
        *read_postgres(),
        *write("1", "a", 3),
        event("standing", standing="following"),
        ack("1", 3, both=False),
        *answered("2", "a", "source", 3),
    ],
    "a failed read waits for PostgreSQL": [
        *read_postgres(),
        *write("1", "a", 3),
        event("read", call="2", id="a"),
        event("snapshot", call="2", from_="source", row=3),
        *applied(2, 3, "a", 3),
        event("answer", call="2", row=3),
    ],
    "last step": [
        *last_step(),
        event("enter", call="1", id="a", delete=False),
        event("target_write", call="1", id="a", revision=7, delete=False),
        ack("1", 7, both=False),
        *answered("2", "a", "target", 7),
    ],
    "a crash during the last step": [
        *read_postgres(),
        event("gate", open=False),
        state(4, completing=True),
        event("phase", phase=4),
        event("crash"),
        event("launch", session=2),
        event("claim", session=2),
        state(4),
        event("start", phase=4),
    ],
    "a fence that times out": [
        *backfill(),
        event("gate", open=False),
        event("gate", open=True),
        *write("1", "b", 3),
        ack("1", 3, both=False),
    ],
    "an orphan is committed before the change": [
        *started(),
        event("enter", call="1", id="a", delete=False),
        event("orphan", call="1"),
        event("claim", session=1),
        event("gate", open=False),
        event("commit", call="1", id="a", revision=3, delete=False),
        event("committed", revision=3),
        state(2, base=3),
    ],
}

FAILED_READ = event("answer", call="2", row=3)

REJECTED: dict[str, tuple[list[Event], Event]] = {
    "premature acknowledgement": (
        [*read_postgres(), *write("1", "a", 3), ack("1", 3, both=False)],
        ack("1", 3, both=False),
    ),
    "SQLite answers ahead of PostgreSQL": (
        [
            *read_postgres(),
            *write("1", "a", 3),
            event("read", call="2", id="a"),
            event("snapshot", call="2", from_="source", row=3),
            FAILED_READ,
        ],
        FAILED_READ,
    ),
    "durable_on names a store that lacks it": (
        [*dual_write(), *write("1", "a", 3), ack("1", 3, both=True)],
        ack("1", 3, both=True),
    ),
    "a revision that SQLite does not have": (
        [*started(), *answered("1", "a", "source", 2)],
        event("snapshot", call="1", from_="source", row=2),
    ),
    "base was taken before the flush": (
        [
            *started(),
            event("enter", call="1", id="a", delete=False),
            event("orphan", call="1"),
            event("claim", session=1),
            event("gate", open=False),
            event("commit", call="1", id="a", revision=3, delete=False),
            state(2, base=2),
        ],
        state(2, base=2),
    ),
    "a write passes a closed fence": (
        [*backfill(), event("gate", open=False), *write("1", "a", 3)],
        event("enter", call="1", id="a", delete=False),
    ),
    "current before the journal is drained": (
        [
            *backfill(),
            *write("1", "a", 3),
            event("gate", open=False),
            state(4),
            event("phase", phase=4),
            event("standing", standing="current"),
        ],
        event("standing", standing="current"),
    ),
    "applied to a PostgreSQL that was set back": (
        [
            *dual_write(),
            *write("1", "a", 3),
            *applied(2, 3, "a", 3),
            event(
                "set_back",
                row={},
                tomb={},
                phase=2,
                session=1,
                applied=2,
                mark=START_MARK | {"begun": False},
            ),
            *write("2", "b", 4),
            *applied(3, 4, "b", 4),
        ],
        event("apply", session=1, applied=4, rows=[{"id": "b", "row": 4, "tomb": 0}]),
    ),
    "a transaction without the lease": (
        [*dual_write(), event("take_over"), event("renew", session=1, applied=2)],
        event("renew", session=1, applied=2),
    ),
    "acknowledged by a fenced server": (
        [
            *dual_write(),
            *write("1", "a", 3),
            event("take_over"),
            event("fenced"),
            ack("1", 3, both=False),
        ],
        ack("1", 3, both=False),
    ),
    "PostgreSQL becomes the only store before the source records it": (
        [*read_postgres(), event("gate", open=False), event("finish", session=1)],
        event("finish", session=1),
    ),
    "tombstone is missing": (
        [*dual_write(), *write("1", "a", 3, delete=True), *applied(2, 3, "a", 0, 0)],
        event("apply", session=1, applied=3, rows=[{"id": "a", "row": 0, "tomb": 0}]),
    ),
}


@needs_tlc
@pytest.mark.parametrize("name", ACCEPTED)
def test_behaviour_is_accepted(name: str) -> None:
    result = checked(ACCEPTED[name])
    assert result.accepted, report(name, result)


@needs_tlc
@pytest.mark.parametrize("name", REJECTED)
def test_first_unexplained_event_is_reported(name: str) -> None:
    events, unexplained = REJECTED[name]
    result = checked(events)
    assert not result.accepted
    assert result.first_unexplained == unexplained, report(name, result)
    assert json.dumps(unexplained) in report(name, result)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the trace is empty"),
        (["{"], "line 1 is not JSON"),
        (['{"event": "crash"}'], "line 1: the first event, and no other, is begin"),
        ([json.dumps(BEGIN), '{"event": "jump"}'], "line 2: unknown event 'jump'"),
        ([json.dumps(BEGIN), '{"event": "committed"}'], "line 2: committed lacks revision"),
    ],
)
def test_malformed_trace_is_rejected_with_line_number(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(lines)


def test_unknown_call_is_rejected() -> None:
    with pytest.raises(TraceError, match="call 1 has not begun"):
        module_of(read(map(json.dumps, [*started(), ack("1", 3, both=False)])))


def test_call_names_are_reused() -> None:
    events = [*started(), *answered("1", "a", "source", 1), *answered("2", "b", "source", 2)]
    module, configuration = module_of(read(map(json.dumps, events)))
    assert 'Readers = {"r1"}' in configuration
    assert module.count('kind |-> "read"') == 2
