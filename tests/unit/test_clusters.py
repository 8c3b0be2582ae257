from __future__ import annotations

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search.clusters import cluster_end, cluster_start
from sagastore_server.search.parser import parse_query
from sagastore_server.search.ranking import MARK_END, MARK_START, SNIPPET_LENGTH, snippet

FAMILY = "👨\u200d👩\u200d👧"
SCOTLAND = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"

CLUSTERS = [
    "\r\n",  # GB3
    "\u1100\u1161\u11a8",  # GB6, GB7
    "가\u11a8",  # GB8
    "e\u0301\u0323",  # GB9
    "a\u200d",
    "நி",  # GB9a
    "\u0600٣",  # GB9b
    "क्ष",  # GB9c
    FAMILY,  # GB11
    SCOTLAND,
    "👍🏽",
    "⚠️",
    "1️⃣",
    "🇩🇪",  # GB12, GB13
    "x",
    "語",
    " ",
]
"""Texts that are one cluster each by a rule of UAX #29, section 3.1.1."""


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("before", ["", "word ", "é", "語", "🎉", "🇫🇷" * 60, "e\u0301" * 80])
def test_position_within_a_cluster_moves_to_its_ends(before: str, cluster: str) -> None:
    text = f"{before}{cluster}z"
    first, last = len(before), len(before) + len(cluster)
    for position in range(first + 1, last):
        # The end of a line is not a letter that could be split.
        if cluster != "\r\n":
            assert (cluster_start(text, position), cluster_end(text, position)) == (first, last)
    for position in (0, first, last, len(text)):
        assert cluster_start(text, position) == cluster_end(text, position) == position


texts = st.lists(
    st.sampled_from(CLUSTERS) | st.sampled_from(["word", "été", "北京", ". "]), max_size=120
).map("".join)


@given(texts, st.sampled_from(["word", "ete", "👩", "⚠", "1", "क्ष", "🇩", "京", "nothing", "*"]))
def test_extracts_and_marks_have_whole_clusters(content: str, query: str) -> None:
    content = content.replace("\r\n", "\n")
    extract = snippet(parse_query(query), content)
    plain = content.replace("\n", " ")
    starts = {match.start() for match in regex.finditer(r"\X", plain)} | {len(plain)}
    shown = extract.replace(MARK_START, "").replace(MARK_END, "")
    core = shown.removeprefix("…").removesuffix("…")
    # The same characters may occur several times: one place must fit with every mark.
    marks = [len(part) for part in regex.split(f"[{MARK_START}{MARK_END}]", extract.strip("…"))]
    edges = [sum(marks[:count]) for count in range(len(marks) + 1)]
    places = [at for at in range(len(plain) + 1) if plain.startswith(core, at)]
    assert any(starts.issuperset(at + edge for edge in edges) for at in places), (content, extract)


def test_cluster_longer_than_an_extract_is_cut() -> None:
    content = "e" + "\u0301" * 1_000_000
    assert 0 < len(snippet(parse_query("e"), content)) <= SNIPPET_LENGTH + 110
