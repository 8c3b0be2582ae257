"""Masking hides every password in connection strings and URLs."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.security.masking import MASK, has_password, mask_credentials, mask_password


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://", "postgresql://"),
        ("postgresql://me@db:5432/saga?sslmode=require", None),
        ("postgresql:///saga?host=/run/postgresql", None),
        ("postgresql://me:secret@db/saga", f"postgresql://me:{MASK}@db/saga"),
        ("postgres://me:se/cr@et@db/saga", f"postgres://me:{MASK}@db/saga"),
        ("postgresql://me:secret@a:1,b:2/saga", f"postgresql://me:{MASK}@a:1,b:2/saga"),
        ("postgresql://db/saga?password=secret&x=1", f"postgresql://db/saga?password={MASK}&x=1"),
        ("postgresql://db/saga?p%61ssword=secret", f"postgresql://db/saga?p%61ssword={MASK}"),
        ("postgresql://db:1/saga?password=sec@ret", f"postgresql://{MASK}"),
        ("postgresql://me:sec?ret@db/saga", f"postgresql://{MASK}"),
        ("postgresql://db?sslpassword=secret", f"postgresql://db?sslpassword={MASK}"),
        ("host=db password=secret", MASK),
    ],
)
def test_password_in_connection_string_is_masked(dsn: str, shown: str | None) -> None:
    assert mask_password(dsn) == (shown or dsn)
    assert has_password(dsn) is (shown is not None and shown != dsn)


@given(st.text(min_size=1).map(lambda text: f"<{text}>"))
def test_masked_text_never_contains_the_password(password: str) -> None:
    assert password not in mask_password(f"postgresql://me:{password}@db/saga")
    assert password not in mask_password(f"postgresql://me@db/?x=1&password={quote(password)}")
    assert password not in mask_credentials(f"https://me:{password}@collector:4317")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
        ("https://token@collector/path", f"https://{MASK}@collector/path"),
        ("https://me:secret@collector", f"https://{MASK}@collector"),
        ("https://collector/v1?key=secret", f"https://collector/v1?{MASK}"),
        ("secret", MASK),
    ],
)
def test_credentials_in_url_are_masked(url: str, shown: str) -> None:
    assert mask_credentials(url) == shown
