"""The attack set itself: its guards, its caps, and that a violated expectation is reported."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.attacks import report
from tools.attacks.attacker import decode, encode
from tools.attacks.file_attack import FileAttack, FileResult, performed
from tools.attacks.loopback import Address, NotLoopbackError
from tools.attacks.measurement import Result, judged, measured
from tools.attacks.plan import MAX_SECONDS, CapReachedError, Pace, Size, Target
from tools.attacks.registry import FILE_ATTACKS, SOCKET_ATTACKS, socket_attack

LOOPBACK = Address("127.0.0.1", 1)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def target(rpc: Address = LOOPBACK, ops: Address = LOOPBACK) -> Target:
    return Target(rpc, ops, Path("ca.pem"), {"reader": "a", "writer": "b"})


OTHERS = ["192.0.2.1", "0.0.0.0", "localhost", "example.org", "::", ""]  # noqa: S104 - refused


@pytest.mark.parametrize("host", OTHERS)
def test_other_machine_is_refused(host: str) -> None:
    with pytest.raises(NotLoopbackError, match="not a loopback address"):
        target(rpc=Address(host, 443))
    with pytest.raises(NotLoopbackError, match="not a loopback address"):
        target(ops=Address(host, 443))


def test_attack_process_refuses_other_machine() -> None:
    document = json.loads(encode(target())) | {"rpc": ["192.0.2.1", 443]}
    command = [sys.executable, "-m", "tools.attacks.attacker", "pings"]
    done = subprocess.run(
        [*command, "--size", "short", "--seconds", "1"],
        input=json.dumps(document) + "\n",
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "192.0.2.1 is not a loopback address" in done.stderr
    assert done.stdout == ""


def test_target_is_passed_to_attack_process() -> None:
    assert decode(encode(target())) == target()


async def test_attack_cannot_exceed_its_caps() -> None:
    pace = Pace(Size(1, 0.001, 2), 1e9, lambda: None)
    assert pace.seconds == MAX_SECONDS
    pace.spend(1000)
    with pytest.raises(CapReachedError):
        pace.spend(1)
    pace.connect()
    pace.connect()
    with pytest.raises(CapReachedError):
        pace.connect()
    assert (pace.sent, pace.connections) == (1000, 2)


async def test_attack_that_waits_for_the_server_ends_in_time() -> None:
    reported: list[bool] = []
    pace = Pace(Size(1, 1, 1), 0.01, lambda: reported.append(True))
    async with pace.lasting():
        await asyncio.Event().wait()
    assert not pace.more()
    assert reported == [True]


async def test_time_limit_of_a_connection_is_not_the_end_of_the_attack() -> None:
    pace = Pace(Size(1, 1, 1), 300, lambda: None)
    with pytest.raises(TimeoutError):
        async with pace.lasting(), asyncio.timeout(0):
            await asyncio.Event().wait()


def test_every_attack_has_caps_and_a_name_of_its_own() -> None:
    names = [attack.name for attack in SOCKET_ATTACKS] + [attack.name for attack in FILE_ATTACKS]
    assert sorted(set(names)) == sorted(names)
    for attack in SOCKET_ATTACKS:
        assert attack.seconds < 60
        assert attack.short.megabytes <= 300
        assert attack.long.megabytes <= 4000


def passing() -> Result:
    """Return figures that meet every expectation."""
    return Result(
        socket_attack("pings"),
        growth=50,
        residue=5,
        idle_p99=0.01,
        p99=0.02,
        codes=Counter(OK=1000),
        newcomers=Counter(OK=10),
        probes=Counter({"200": 10}),
        log_rate=100,
    )


def change(**figures: object) -> Callable[[], Result]:
    return lambda: dataclasses.replace(passing(), **figures)  # type: ignore[arg-type]


def test_expected_figures_pass() -> None:
    assert judged(passing(), timed=True) == []


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        (change(growth=101.0), "memory grew by 101 MB"),
        (change(residue=21.0), "21 MB remained"),
        (change(codes=Counter(OK=1000, CANCELLED=1)), "authenticated caller: {'CANCELLED': 1}"),
        (change(codes=Counter(OK=900, RESOURCE_EXHAUSTED=100)), "100 of 1010 calls"),
        (change(codes=Counter()), "authenticated caller: none succeeded"),
        (change(newcomers=Counter(OK=9, UNAVAILABLE=1)), "new connections: {'UNAVAILABLE': 1}"),
        (change(probes=Counter({"200": 9, "503": 1})), "/livez: {'503': 1}"),
        (change(log_rate=1001.0), "the log grew by 1,001 bytes/s"),
        (change(p99=0.051), "p99 was 5.1 times the idle p99"),
    ],
)
def test_violated_expectation_is_reported(figures: Callable[[], Result], complaint: str) -> None:
    (found,) = judged(figures(), timed=True)
    assert complaint in found


def test_short_form_does_not_judge_latency() -> None:
    assert judged(dataclasses.replace(passing(), p99=10.0), timed=False) == []


@LINUX
async def test_growth_of_real_server_is_measured(tmp_path: Path) -> None:
    # No server keeps this limit: it is below what the server had before.
    attack = dataclasses.replace(socket_attack("pings"), growth=-1000.0, seconds=1.0)
    result = await measured(attack, tmp_path)
    assert any("memory grew by" in complaint for complaint in result.complaints)
    assert result.idle_memory > 30
    assert result.sent["sent"] > 0
    assert result.codes["OK"] > 0
    assert result.probes["200"] > 0
    assert "FAILED" in report.table([result])


@LINUX
def test_successful_file_attack_is_reported(tmp_path: Path) -> None:
    attack = FileAttack("own", "writes a file", lambda folder, attempts: [f"{attempts} written"])
    result = performed(attack, short=True)
    assert result.complaints == ["1 written"]
    report.write([result], tmp_path)
    assert "FAILED" in (tmp_path / "report.txt").read_text()
    (document,) = json.loads((tmp_path / "report.json").read_text())
    assert document["complaints"] == ["1 written"]


def test_skipped_attack_is_not_a_pass() -> None:
    attack = FILE_ATTACKS[0]
    table = report.table([FileResult(attack, skipped="needs root")])
    assert "skipped" in table
    assert "passed" not in table


def test_unknown_attack_is_named() -> None:
    command = [sys.executable, "-m", "tools.attacks", "--attack", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert "unknown attack 'nothing'; available: " in done.stderr
