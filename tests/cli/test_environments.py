"""The command without the usual environment: locale, home, terminal, reader of its output."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.command import Sagastore, command_line
from tests.cli.terminal import Terminal, without_steering

WIDE = "漢字" * 40
LONG = "x" * 130


def _run(environment: dict[str, str], *args: str | Path) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command_line(*args),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done


def test_help_and_errors_are_printed_in_a_locale_without_unicode(cli: Sagastore) -> None:
    plain = cli.env | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    plain["PYTHONIOENCODING"] = "ascii"
    done = _run(plain, "migrate", "watch", "-h")
    assert done.returncode == 0
    assert b"Usage: sagastore migrate watch" in done.stdout
    done = _run(plain, "list", "é", "--limit", "漢")
    assert (done.returncode, done.stdout) == (2, b"")
    done.stderr.decode("ascii")
    cli.ok("save", "--provider", "p", "--role", "r", "--id", "wide-1", "漢字")
    done = _run(plain, "get", "wide-1")
    assert done.returncode == 0
    assert rb"\u6f22\u5b57" in done.stdout


def test_nothing_in_the_environment_is_required(cli: Sagastore, tmp_path: Path) -> None:
    bare: dict[str, str] = {
        name: cli.env[name] for name in ("PATH", "PYTHONPATH") if name in cli.env
    }
    target = ("--target", cli.env["SAGASTORE_TARGET"])
    assert _run(bare, *target, "ping").returncode == 0
    lines = tmp_path / "one.jsonl"
    lines.write_text('{"provider": "p", "role": "r", "content": "c", "id": "bare-1"}\n')
    assert _run(bare | {"HOME": str(tmp_path)}, *target, "import", lines).returncode == 0


def test_closed_pipes_end_a_command_silently(cli: Sagastore) -> None:
    shell = " ".join(f"'{word}'" for word in command_line("list", "pipe"))
    # More than a pipe holds.
    content = "x" * 300_000
    cli.ok("save", "--provider", "p", "--role", "r", "--session", "pipe", "-", stdin=content)
    for reader in ("head -c 1", "true"):
        done = subprocess.run(
            ["bash", "-c", f"{shell} | {reader} > /dev/null; echo ${{PIPESTATUS[0]}}"],
            env=cli.env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("columns", [40, 133])
def test_errors_and_help_fit_the_terminal(cli: Sagastore, columns: int) -> None:
    cli.env.pop("COLUMNS", None)
    for args in (
        ("sessions", "show", f"no {WIDE} {LONG}"),
        ("search", "--order", LONG),
        ("migrate", "to", "-h"),
    ):
        terminal = Terminal(cli, *args, columns=columns, NO_COLOR="1")
        terminal.end()
        rows = terminal.text.splitlines()
        assert all(cell_len(row) <= columns for row in rows), rows
        assert "<bool>" not in terminal.text


def test_words_of_an_error_are_kept_whole_on_a_terminal(cli: Sagastore) -> None:
    terminal = Terminal(cli, "get", "a b c d e f g h i j k l m n o p", columns=30, NO_COLOR="1")
    assert terminal.end() == 3
    words = without_steering(terminal.text).split()
    assert words[:6] == ["sagastore:", "no", "message", "has", "the", "id"]


def test_no_colour_is_used_where_it_is_not_wanted(cli: Sagastore) -> None:
    for terminal in (Terminal(cli, "ping", NO_COLOR="1"), Terminal(cli, "ping", TERM="dumb")):
        assert terminal.end() == 0
        assert "\x1b[3" not in terminal.raw


def test_errors_are_one_line_where_there_is_no_terminal(cli: Sagastore) -> None:
    done = cli.run("lst", COLUMNS="20")
    assert done.returncode == 2
    assert done.stderr == (
        "sagastore: no such command 'lst'. Did you mean 'list'? For help, run: sagastore -h\n"
    )


@pytest.mark.parametrize(
    "args",
    [
        ("--json", "list", "s"),
        ("list", "--json", "s"),
        ("list", "s", "--json"),
    ],
)
def test_every_place_of_an_option_is_equal(cli: Sagastore, args: tuple[str, ...]) -> None:
    for place in range(len(args) + 1):
        refused = [*args[:place], "--target", "127.0.0.1:1", "--timeout=0.5", *args[place:]]
        done = cli.run(*refused)
        assert (done.returncode, done.stdout) == (4, "")
        assert json.loads(done.stderr)["code"] == "UNAVAILABLE"


def test_options_of_a_group_are_those_of_its_commands(cli: Sagastore) -> None:
    cli.ok("save", "--provider", "p", "--role", "r", "--session", "grouped", "x")
    expected = cli.ok("sessions", "show", "grouped", "--json")
    assert cli.ok("sessions", "--json", "show", "grouped") == expected
    target = cli.env.pop("SAGASTORE_TARGET")
    assert cli.ok("sessions", "--target", target, "--json", "show", "grouped") == expected
