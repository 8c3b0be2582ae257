"""Log text: secrets are masked, values and lines are bounded."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.security.access_edit import new_token
from sagastore_server.security.access_rules import digest_of
from sagastore_server.telemetry.log_text import (
    MASK,
    MAX_LINE,
    MAX_VALUE,
    clean,
    clean_event,
    literals,
    masked,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer abcdefghijkl", f"Bearer {MASK}"),
        ("basic d3JpdGVyOnBhc3M=", f"basic {MASK}"),
        ("the header must be one bearer token", None),
        ("postgresql://me:secret@db/saga", f"postgresql://me:{MASK}@db/saga"),
        ("at http://u:a/b:c@h:1/x and more", f"at http://u:{MASK}@h:1/x and more"),
        ("http://127.0.0.1:4317/path", None),
        ("password=secret host=db", f"password={MASK} host=db"),
        ("PGPASSWORD='it''s \\' long' x", f"PGPASSWORD={MASK} x"),
        ("{'password': b'secret', 'x': 1}", f"{{'password': {MASK}, 'x': 1}}"),
        ('{"api_key": "se\\"cret"}', f'{{"api_key": {MASK}}}'),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----.", f"[{MASK}]."),
        ("-----BEGIN PRIVATE KEY-----\nMHcCAQ", f"[{MASK}]"),
        # Ids are shown.
        ("01a22c87-be02-739a-9494-86c835378373", None),
        ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", None),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", None),
        ("/home/User/Projects/sagastore/server/sagastore_server/rpc/handlers.py", None),
        ("sagastore_group_commit_duration_seconds_bucket", None),
    ],
)
def test_secret_is_masked_and_other_text_is_not(text: str, shown: str | None) -> None:
    assert masked(text) == (text if shown is None else shown)


def test_token_is_shown_as_the_beginning_of_its_digest() -> None:
    token = new_token()
    shown = f"sha256:{digest_of(token).hex()[:12]}"
    assert masked(f"id {token}.") == f"id {shown}."
    assert masked(f"id {token[:20]}").startswith("id sha256:")


@given(st.binary(min_size=32, max_size=64))
def test_random_text_in_base64_is_masked(raw: bytes) -> None:
    import base64  # noqa: PLC0415 - used here only

    if len(set(raw)) < 16:
        return  # Not random.
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(raw).decode()
        assert text.rstrip("=") not in masked(f"x {text} y")


def test_known_password_is_masked_anywhere() -> None:
    secrets = literals(["correct horse", "pw", None, ""])
    assert masked("a correct horse, pw", secrets) == f"a {MASK}, pw"


def test_value_is_cut_and_has_no_control_characters() -> None:
    assert clean("a\x1b[31m\r\x00\u2028b\nc") == "a\\u001b[31m\\u000d\\u0000\\u2028b\n    c"
    assert clean("é" * 3_000_000) == "é" * MAX_VALUE + "… (3,000,000 characters)"


@given(
    st.dictionaries(
        st.text(max_size=2000), st.one_of(st.text(), st.binary(), st.integers(), st.none())
    ),
    st.integers(1, 3000),
)
def test_line_is_bounded(event: dict[str, object], times: int) -> None:
    longer = {
        key: value * times if isinstance(value, str) else value for key, value in event.items()
    }
    longer |= {"exception": "row \x00\n" * times, "event": "x"}
    found = clean_event(longer)
    assert len(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")) <= 2 * MAX_LINE


@pytest.mark.parametrize(
    "text",
    ["a://" * 500, "password" * 250, "bearer " * 300, "-----BEGIN A-----" * 120, "'=" * 1000],
)
def test_hostile_text_takes_no_quadratic_time(text: str) -> None:
    """The whole input is cut to 2000 characters: 5 ms here; the limit allows for a busy machine."""
    began = time.thread_time()
    clean(text * 1000)
    assert time.thread_time() - began < 0.1
