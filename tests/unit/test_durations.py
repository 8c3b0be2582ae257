"""Durations on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.cli.durations import LONGEST, SHORTEST, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("90s", 90),
        ("30m", 1800),
        ("1h", 3600),
        ("1H", 3600),
        ("1h30m", 5400),
        (" 1d ", 86_400),
        ("2w", 1_209_600),
        ("1.5h", 5400),
        ("366d", 366 * 86_400),
    ],
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("60", "'60' has no unit; write 60s, 60m, 60h"),
        ("", "'' is not a duration; write a number and s, m, h, d or w"),
        ("h", "is not a duration"),
        ("1 h", "is not a duration"),
        ("-1h", "is not a duration"),
        ("1h 30", "is not a duration"),
        ("1e3s", "is not a duration"),
        ("infs", "is not a duration"),
        ("١h", "is not a duration"),
        ("0s", "is not from 1s to 366d"),
        ("0.5s", "is not from 1s to 366d"),
        ("367d", "is not from 1s to 366d"),
        ("999999999w", "is not from 1s to 366d"),
    ],
)
def test_wrong_duration_is_refused_with_its_value(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_duration(text)
    assert part in str(caught.value)
    assert repr(text) in str(caught.value)


@given(st.text() | st.from_regex(r"\A[0-9.]{0,12}[smhdwx]?[0-9.]{0,12}[smhdwx]?\Z"))
def test_every_text_is_a_duration_in_bounds_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert SHORTEST <= seconds <= LONGEST
