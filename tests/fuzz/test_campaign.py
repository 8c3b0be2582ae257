"""Short fuzz campaign; ``make fuzz`` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc import StatusCode

from tools.fuzz import fuzz_input, input_mix, raw_client
from tools.fuzz.__main__ import server_for
from tools.fuzz.answer_check import Answer, wrong
from tools.fuzz.campaign import Campaign, Options
from tools.fuzz.http2_frames import DIES_OF_PATHS, NO_TEXT, path_call

SEED = "ci"


@pytest.mark.parametrize(("target", "count"), [("sqlite", 2200), ("phases", 700)])
async def test_every_input_gets_a_valid_answer(target: str, count: int, tmp_path: Path) -> None:
    async with server_for(target, tmp_path) as server:
        options = Options(count, f"{SEED}-{target}", tmp_path / "failures", warm_up=count // 5)
        report = await Campaign(server, target, options, print).run(phases=target == "phases")
    assert report.failures == []
    assert report.inputs == count
    assert report.canary_messages > 0


@pytest.mark.xfail(DIES_OF_PATHS, reason="this version of grpcio shuts the server down")
async def test_non_text_path_does_not_stop_the_server(tmp_path: Path) -> None:
    async with server_for("sqlite", tmp_path) as server:
        for _ in range(3):
            (answer,) = await raw_client.send(server.address, path_call(NO_TEXT))
            assert answer.code is StatusCode.UNKNOWN


def test_input_is_deterministic(tmp_path: Path) -> None:
    for number in range(200):
        one = input_mix.made("same", number)
        assert input_mix.made("same", number) == one
        if number % 10 == 0:
            fuzz_input.save(one, tmp_path / "one.json")
            assert fuzz_input.load(tmp_path / "one.json") == one


def test_input_size_is_bounded() -> None:
    # Number 114 of this seed repeats repeated fields; expanded, it would be 6.4 GB.
    sizes = [
        sum(map(len, input_mix.made("ci-phases-warm-up", number).payloads)) for number in range(140)
    ]
    assert max(sizes) < 2 * input_mix.OVERSIZED
    assert sum(sizes) < 200 * 1024 * 1024


def test_foreign_file_is_not_an_input(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"other\.json is not a fuzz input"):
        fuzz_input.load(path)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(StatusCode.INTERNAL, "internal error"),
        Answer(StatusCode.UNKNOWN, "Unexpected <class 'ValueError'>"),
        Answer(StatusCode.INVALID_ARGUMENT, "without details"),
        Answer(StatusCode.UNAVAILABLE, "Socket closed"),
        Answer(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        Answer(StatusCode.NOT_FOUND, "details of another kind", b"\xff"),
    ],
)
def test_invalid_answer_is_reported(answer: Answer) -> None:
    one = fuzz_input.Input("one", "call", f"{fuzz_input.STORAGE}Get", (b"",))
    assert wrong(one, answer) is not None
