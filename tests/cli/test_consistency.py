"""`--consistency` of reading commands, and positions in the output of writing commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sagastore.cli.app import app
from sagastore_server.interfaces.consistency import WalPosition, decoded
from tests.cli.command import Sagastore
from tests.support.server_process import ServerProcess

READING = [
    ("get", "m"),
    ("list", "trip"),
    ("list", "trip", "--newest"),
    ("search", "hello"),
    ("export", "-"),
    ("sessions", "list"),
    ("sessions", "show", "trip"),
    ("files", "list"),
    ("files", "show", "f"),
]
SAVE = ("save", "--provider", "openai", "--role", "user")
ELSEWHERE = WalPosition(7, 1, 1).encoded()


@pytest.fixture
def postgres_cli(shared_postgres_server: ServerProcess, tmp_path: Path) -> Sagastore:
    return Sagastore(shared_postgres_server.address, tmp_path)


def test_every_writing_command_prints_its_position(postgres_cli: Sagastore, tmp_path: Path) -> None:
    cli = postgres_cli
    row = {"provider": "p", "role": "r", "content": "c", "session_id": "trip"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row), encoding="utf-8")
    written = [
        cli.json(*SAVE, "--id", "m", "--session", "trip", "hello"),
        cli.json("import", tmp_path / "in.jsonl"),
        cli.json("files", "save", "--id", "f", "--type", "pdf", "a.pdf"),
        cli.json("sessions", "rename", "trip", "Trip"),
    ]
    found = cli.json("get", "m", "--consistency", written[-1]["position"])
    assert found["content"] == "hello"
    written += [
        cli.json("delete", "m"),
        cli.json("files", "delete", "f"),
        cli.json("sessions", "delete", "trip", "--yes"),
    ]
    positions = [decoded(one["position"]) for one in written]
    assert positions == sorted(positions)
    assert len(set(positions)) == len(positions)


def test_store_without_positions_prints_an_empty_one(cli: Sagastore) -> None:
    saved = cli.json(*SAVE, "--id", "plain", "hello")
    assert saved["position"] == ""
    assert cli.json("get", "plain", "--consistency", saved["position"])["content"] == "hello"
    assert cli.json("get", "plain", "--consistency", "any_replica")["content"] == "hello"


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_command_sends_the_requirement(
    postgres_cli: Sagastore, words: tuple[str, ...]
) -> None:
    done = postgres_cli.run(*words, "--consistency", ELSEWHERE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "sagastore: --consistency: is a position of another PostgreSQL, so it says nothing about "
        "this one (the data may have been moved); leave it empty to read the latest state"
    )


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_misspelt_level_is_a_usage_error(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words, "--consistency", "latets"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "sagastore: invalid value for '--consistency': 'latets' is neither latest nor any_replica "
        "nor a position; for help, run: sagastore"
    )


@pytest.mark.parametrize(
    ("typed", "offered"), [("", ["latest", "any_replica"]), ("any", ["any_replica"]), ("x", [])]
)
def test_shell_completes_the_levels(typed: str, offered: list[str]) -> None:
    done = CliRunner().invoke(
        app,
        [],
        env={
            "_SAGASTORE_COMPLETE": "complete_bash",
            "COMP_WORDS": f"sagastore search --consistency {typed}",
            "COMP_CWORD": "3",
        },
        prog_name="sagastore",
    )
    assert done.output.split() == offered
