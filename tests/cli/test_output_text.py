"""Sanitizing, JSON numbers, times and other text output."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore import Message, SearchResult, _json
from sagastore.cli import message_view
from sagastore.cli.console import screen
from sagastore.cli.progress import duration
from sagastore.cli.raw_export import line_of
from sagastore.cli.times import parse_moment, parse_time, show_time
from sagastore.commandline.sanitize import json_safe, label, one_line, printable
from sagastore.v1 import message_pb2

NASTY = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\x7fd\u202ee\x00f\rg\u2028h"
STEERING = [chr(c) for c in (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2066)]


def test_printable_replaces_terminal_control_characters() -> None:
    assert printable("".join(STEERING)).isprintable()
    assert printable("a\x1b[31mb") == "a\u241b[31mb"
    assert printable("a\r\nb\tc") == "a\nb\tc"
    assert printable("漢字 é 👩\u200d💻 [red]") == "漢字 é 👩\u200d💻 [red]"
    assert label("a\nb\tc") == "a\u240ab\u2409c"
    assert one_line(" a\nb\r\nc ") == "a b c"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert not set(printable(text)) & set(STEERING)
    assert printable(label(text)).replace("\n", "") == label(text)


@given(st.dictionaries(st.text(), st.text()))
def test_json_safe_preserves_the_value(value: dict[str, str]) -> None:
    text = json_safe(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set(text) & {chr(c) for c in (*range(32), *range(0x7F, 0xA0))}


@pytest.mark.parametrize("terminal", [True, False])
def test_message_view_sanitizes_text(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "40")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    message = Message(
        NASTY, NASTY, NASTY, id=NASTY, tags=[NASTY], session_id=NASTY, metadata={NASTY: NASTY}
    )
    out = screen()
    message_view.whole(out, message)
    message_view.in_session(out, message, 1)
    message_view.hit(out, SearchResult(message, 1.0, f"\x02{NASTY}\x03{NASTY}"))
    out.table("t", ("a",), [(NASTY,)])
    printed = capsys.readouterr().out
    assert "title" in printed
    assert not set(printed) & set(STEERING)


def test_rich_markup_is_printed_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    message_view.in_session(
        screen(), Message("p", "r", "[red]x[/red] :smile:", id="i", tags=["[b]t[/b]"]), 1
    )
    printed = capsys.readouterr().out
    assert "[red]x[/red] :smile:" in printed
    assert "#[b]t[/b]" in printed


def test_narrow_terminal_wraps_and_indents(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "20"}.items():
        monkeypatch.setenv(name, value)
    screen().line("one two three four five 漢字漢字 six", indent=4)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert all(row.startswith("    ") and row == row.rstrip() for row in rows)


def test_pipe_output_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word " * 5000 + "end\tx"
    screen().line((text, "bold red"), indent=2)
    assert capsys.readouterr().out == f"  {text}\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a":1.50}', '{"a":1.50}'),
        # A number in exponent notation is a float, and stays one.
        ('{"a":1e2}', '{"a":100.0}'),
        ('{"a":0.1}', '{"a":0.1}'),
        ('{"a":100.0}', '{"a":100.0}'),
        ('{"a":12345678901234567890.123}', '{"a":12345678901234567890.123}'),
        (f'{{"a":{"9" * 5000}}}', f'{{"a":{"9" * 5000}}}'),
        ('{"a":[1.10,{"b":-0.0}]}', '{"a":[1.10,{"b":-0.0}]}'),
    ],
)
def test_numbers_keep_their_spelling(text: str, written: str) -> None:
    assert _json.dumps(_json.loads_as_written(text)) == written


def test_exact_float_stays_a_float() -> None:
    assert _json.loads_as_written("[0.5, 1.5, 1.50]") == [0.5, 1.5, Decimal("1.50")]
    assert type(_json.loads_as_written("1.5")) is float


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":2}', "has the key 'a' twice"),
        ('{"a":NaN}', "contains NaN"),
        ('{"a":1e99999999999999999999}', "number 1e9+, whose exponent is out of range"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_invalid_json_is_rejected_with_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _json.loads_as_written(text)


def test_times_are_parsed_and_displayed() -> None:
    assert parse_time("2025-01-02").isoformat() == "2025-01-02T00:00:00+00:00"
    assert parse_time("2025-01-02 03:04:05.5+02:00").isoformat() == (
        "2025-01-02T01:04:05.500000+00:00"
    )
    assert parse_time("0001-01-01T00:00:00Z").year == 1
    assert parse_time("2025-01-01T00:00:00.0000019").microsecond == 1
    for text in ("yesterday", "1700000000", "2025-13-01", ""):
        with pytest.raises(ValueError, match="is "):
            parse_time(text)
    now = datetime(2026, 1, 8, tzinfo=UTC)
    assert parse_moment("7d", now) == datetime(2026, 1, 1, tzinfo=UTC)
    assert parse_moment("90s", now) == datetime(2026, 1, 7, 23, 58, 30, tzinfo=UTC)
    assert show_time(parse_time("2025-01-02T03:04:05.678Z")) == "2025-01-02 03:04:05"
    assert show_time(parse_time("2025-01-02T03:04:05.6Z"), exact=True).endswith("05.600000")


def test_durations_are_displayed() -> None:
    assert [duration(s) for s in (0.04, 9.94, 9.96, 59.6, 61, 3599.7, 7265)] == [
        *("0.0 s", "9.9 s", "10 s", "1:00 min", "1:01 min", "1:00:00 h", "2:01:05 h")
    ]


def test_metadata_display_preserves_numbers() -> None:
    assert message_view.pretty_json({"a": [1, {"b": None}]}) == '{"a": [1, {"b": null}]}'
    value: dict[str, Any] = {"key": ["x" * 60, Decimal("1.50")], "empty": {}, "t": True}
    text = message_view.pretty_json(value)
    assert text.count("\n") == 4
    assert _json.loads_as_written(text) == value


def test_exported_line_has_the_fields_of_an_import() -> None:
    message = message_pb2.Message(
        id="i", provider="p", role="r", content='q"\u2028\x85é', metadata_json='{"n": 1.50}'
    )
    message.timestamp.FromJsonString("2025-01-02T03:04:05.000007Z")
    line = line_of(message)
    assert line == (
        '{"id": "i", "provider": "p", "role": "r", "content": "q\\"\u2028\\u0085é", "tags": [], '
        '"timestamp": "2025-01-02T03:04:05.000007+00:00", "metadata": {"n": 1.50}, '
        '"session_id": null, "created_at": null}\n'
    )
    assert json.loads(line)["content"] == 'q"\u2028\x85é'
    message.created_at.FromJsonString("2025-02-02T00:00:00Z")
    assert line_of(message).endswith('"created_at": "2025-02-02T00:00:00+00:00"}\n')
