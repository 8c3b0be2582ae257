"""The documented journeys work as the pages describe them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shutil import which
from types import MappingProxyType
from typing import NamedTuple

import pytest

from tests.docs.page import Step, commands, matches, steps
from tests.docs.shell import ROOT, Session, load_generator
from tests.support.legacy_db import legacy_db
from tests.support.old_stores import OldRow, make_sqlite


class Journey(NamedTuple):
    """A page whose marked blocks are run in a fresh folder."""

    page: str
    ports: tuple[int, ...]
    """Ports on the page, each replaced by a free one."""
    env: Mapping[str, str] = MappingProxyType({})
    """Addresses that the page leaves at their defaults."""
    prepare: Callable[[Path], None] = lambda folder: None
    """Creates the files that the reader of the page has."""


def old_store(folder: Path) -> None:
    """Create a store of an earlier version."""
    make_sqlite(folder / "saga.db", [OldRow(1, "b", 2), OldRow(2, "a", 1)], 2)


def memory_db(folder: Path) -> None:
    """Create the file of a legacy application: the sample, and a row with NaN."""
    lines = (ROOT / "tests/data/sgd-sample.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        message | {name: json.dumps(message[name]) for name in ("tags", "metadata")}
        for message in map(json.loads, lines)
    ]
    odd = rows[0] | {"id": "bad-nan", "metadata": '{"score": NaN}'}
    legacy_db(folder / "memory.db", [*rows, odd])


DEFAULTS = {
    "SAGASTORE_LISTEN": "127.0.0.1:50051",
    "SAGASTORE_TARGET": "127.0.0.1:50051",
    "SAGASTORE_OPS_LISTEN": "off",
}

JOURNEYS = [
    # Quick start, migration, PostgreSQL.
    Journey("docs/tutorial/first-ten-minutes.md", (50051,), DEFAULTS),
    # Mutual TLS, tokens, metrics, backup and restore.
    Journey("docs/how-to/operations.md", (50651, 9464)),
    Journey("docs/how-to/legacy-import.md", (50051,), DEFAULTS, memory_db),
    Journey("docs/how-to/upgrade.md", (50051,), DEFAULTS, old_store),
    Journey("docs/how-to/load-testing.md", (50051,), {**DEFAULTS, "TARGET": "127.0.0.1:50051"}),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a fresh folder. PostgreSQL, which root runs as another user, can reach it."""
    with tempfile.TemporaryDirectory(prefix="journey-") as name:
        made = Path(name)
        made.chmod(0o755)
        yield made


def missing_program() -> str:
    """Return a program that pages use and this machine lacks; empty if there is none."""
    if not (Path(sys.prefix) / "bin/activate").exists():
        return "a virtual environment"
    return next((name for name in ("bash", "curl", "make", "openssl") if not which(name)), "")


@pytest.mark.skipif(bool(missing_program()), reason=f"{missing_program()} is not installed")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: Path(journey.page).stem)
def test_page_works_as_shown(journey: Journey, folder: Path) -> None:
    found = steps(ROOT / journey.page)
    assert found
    if journey.page.endswith("load-testing.md") and load_generator() is None:
        pytest.skip("ghz is not installed (make ghz)")
    journey.prepare(folder)
    with Session(folder, journey.ports, journey.env) as session:
        differences = [difference for step in found for difference in session.perform(step)]
    assert not differences, "\n\n".join(differences)


def test_mark_selects_commands_and_outputs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ not marked\n```\n"
        "<!-- run -->\n```console\n$ one \\\n    two\nshown\n...\n$ three\n```\n"
        "<!-- run: until is up -->\n```\n$ serve\nup\n```\n"
        "<!-- run: file a.toml -->\n```toml\nx = 1\n```\n"
        "<!-- run: in client -->\n```sh\nfour\n\nfive\n```\n<!-- run: stop -->\n"
    )
    assert steps(page) == [
        Step("run", "one \\\n    two", "shown\n..."),
        Step("run", "three", ""),
        Step("until", "serve", "is up", "up"),
        Step("file", "a.toml", "x = 1\n"),
        Step("run", "four", "", terminal="client"),
        Step("run", "five", "", terminal="client"),
        Step("stop", "", ""),
    ]
    assert commands("$ a\n\nb\n") == [("a", "b")]


@pytest.mark.parametrize(
    "text", ["<!-- run -->\n\ntext\n", "<!-- run: stop -->\n```\nx\n```\n", "<!-- runs -->\n"]
)
def test_wrong_mark_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        steps(tmp_path / "page.md")


@pytest.mark.parametrize(
    ("shown", "output", "same"),
    [
        ("a  b", "a b\n", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("a\n...", "a\nb\nc", True),
        ("...\nc", "a\nb\nc", True),
        ("a\n...\nc", "a\nb\nd", False),
        ("in 0.1 s, 5,446 msg/s", "in 12.3 s, 10 msg/s", True),
        ("at 2026-11-30 17:58:45: 3 rows", "at 2027-01-01 00:00:00: 3 rows", True),
        ("at 2026-11-30 17:58:45: 3 rows", "at 2026-11-30 17:58:45: 4 rows", False),
        ("at …/a.db", "at /x/a.db", True),
        ("0.0.0.0:50051", "0.0.0.0:50052", False),
    ],
)
def test_output_is_compared_where_it_is_stable(shown: str, output: str, same: bool) -> None:
    assert matches(shown, output) is same


def test_failure_and_difference_are_found(folder: Path) -> None:
    with Session(folder, (), {}) as session:
        assert session.perform(Step("run", "echo a; false", "a")) == []
        (difference,) = session.perform(Step("run", "echo a", "b"))
        assert "-b\n+a" in difference
        with pytest.raises(AssertionError, match="no such file"):
            session.perform(Step("run", "cat no-such-file 2>&1 | sed s/N/n/; exit_with 3", ""))
        session.perform(Step("run", "export NAME=value", ""))
        assert session.run("echo $NAME").output == "value\n"
        assert session.run("echo $NAME", "other").output == "\n"
        with pytest.raises(AssertionError):
            session.perform(Step("until", "echo ended", "never"))
