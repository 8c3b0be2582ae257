from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sagastore import __version__
from sagastore.cli.app import app
from tests.cli.command import SAMPLE, Sagastore, command_line, sample


def _save(cli: Sagastore, id: str, content: str = "hello world", *more: str) -> None:
    cli.ok("save", "--provider", "openai", "--role", "user", "--id", id, *more, content)


def test_save_prints_id_revision_and_created(cli: Sagastore) -> None:
    args = ("save", "--provider", "openai", "--role", "user", "--id", "save-1", "hello")
    first = cli.json(*args)
    assert list(first) == ["id", "revision", "created", "durable_on", "position"]
    assert first == first | {"id": "save-1", "created": True, "durable_on": ["sqlite"]}
    again = cli.json(*args)
    assert again == first | {"created": False}
    text = cli.ok(*args)
    assert text.startswith(f"save-1  revision {first['revision']}, not created")


def test_save_and_get_preserve_every_field(cli: Sagastore) -> None:
    metadata = '{"n": 12345678901234567890123456789, "x": 0.1, "big": 1234567890.12345678901}'
    _save(
        cli,
        "fields-1",
        "what was said",
        *("--tag", "a", "--tag", "b c", "--session", "s", "--metadata", metadata),
        *("--timestamp", "2025-02-03T04:05:06.000007+02:00"),
    )
    text = cli.ok("get", "fields-1", "--json")
    message = json.loads(text)
    assert list(message) == [
        *("id", "provider", "role", "content", "tags", "timestamp", "metadata", "session_id"),
        *("created_at", "revision", "sequence"),
    ]
    assert message["tags"] == ["a", "b c"]
    assert message["timestamp"] == "2025-02-03T02:05:06.000007+00:00"
    assert message["session_id"] == "s"
    assert '"n":12345678901234567890123456789' in text
    assert '"big":1234567890.12345678901' in text


@pytest.mark.parametrize("number", ["1e23", "1.7e308", "5e-324", "1e+16", "1E16", "-1e100", "0.1"])
def test_floats_stay_floats(cli: Sagastore, number: str) -> None:
    _save(cli, "float-1", "", "--metadata", f'{{"n": {number}, "i": 100000000000000000000000}}')
    metadata = cli.json("get", "float-1")["metadata"]
    assert metadata == {"n": float(number), "i": 10**23}
    assert type(metadata["n"]) is float


def test_export_and_import_preserve_numbers(own_cli: Sagastore, tmp_path: Path) -> None:
    numbers = "[1e23, 1.7e308, 5e-324, 1e16, -0.0, 1.50, 100000000000000000000000, 1e-400]"
    _save(own_cli, "n-1", "", "--metadata", f'{{"n": {numbers}}}')
    own_cli.ok("export", tmp_path / "first.jsonl")
    own_cli.ok("delete", "n-1")
    assert own_cli.json("import", tmp_path / "first.jsonl")["saved"] == 1
    own_cli.ok("export", tmp_path / "second.jsonl")
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    read = json.loads((tmp_path / "second.jsonl").read_text(encoding="utf-8"))["metadata"]["n"]
    assert read[:7] == [1e23, 1.7e308, 5e-324, 1e16, 0.0, 1.5, 10**23]


def test_import_accepts_content_without_text_and_nanoseconds(
    own_cli: Sagastore, tmp_path: Path
) -> None:
    line = {"id": "e-1", "provider": "p", "role": "assistant", "content": "", "session_id": "s"}
    line["timestamp"] = "2025-02-03T04:05:06.123456789Z"
    (tmp_path / "in.jsonl").write_text(json.dumps(line), encoding="utf-8")
    assert own_cli.json("import", tmp_path / "in.jsonl")["saved"] == 1
    assert own_cli.json("import", tmp_path / "in.jsonl")["unchanged"] == 1
    found = own_cli.json("get", "e-1")
    assert (found["content"], found["timestamp"]) == ("", "2025-02-03T04:05:06.123456+00:00")
    assert "e-1" in own_cli.ok("list", "s")


def test_naive_times_are_utc(cli: Sagastore) -> None:
    _save(cli, "naive-1", "x", "--timestamp", "2025-02-03 04:05:06")
    assert cli.json("get", "naive-1")["timestamp"] == "2025-02-03T04:05:06+00:00"


def test_content_comes_from_standard_input(cli: Sagastore) -> None:
    args = ("save", "--provider", "p", "--role", "r", "--id", "stdin-1", "-")
    cli.ok(*args, stdin="first\nsecond 漢 é\n")
    assert cli.json("get", "stdin-1")["content"] == "first\nsecond 漢 é"


def test_if_revision_mismatch_is_reported_in_one_line(cli: Sagastore) -> None:
    _save(cli, "guard-1")
    args = ("--provider", "openai", "--role", "user", "--id", "guard-1", "other")
    done = cli.run("save", "--if-revision", "0", *args)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sagastore: ")
    assert done.stderr.count("\n") == 1


def test_get_reports_missing_ids(cli: Sagastore) -> None:
    _save(cli, "several-1")
    done = cli.run("--json", "get", "several-1", "several-none")
    assert done.returncode == 3
    assert json.loads(done.stdout)["id"] == "several-1"
    assert json.loads(done.stderr) == {
        "code": "NOT_FOUND",
        "reason": "MESSAGE_NOT_FOUND",
        "message": "no message has the id 'several-none'",
        "violations": [],
    }
    assert cli.run("get", "several-none").stderr == (
        "sagastore: no message has the id 'several-none'\n"
    )


def test_delete_removes_messages_and_reports_unknown_ids(cli: Sagastore) -> None:
    _save(cli, "delete-1")
    done = cli.run("delete", "delete-1", "delete-none")
    assert (done.returncode, done.stdout) == (3, "deleted delete-1\n")
    assert "delete-none" in done.stderr
    assert cli.run("get", "delete-1").returncode == 3


def test_list_is_ordered_and_limited(own_cli: Sagastore) -> None:
    own_cli.ok("import", SAMPLE)
    session = sample()[0]["session_id"]
    expected = [m["id"] for m in sample() if m["session_id"] == session]
    assert [m["id"] for m in own_cli.lines("list", session)] == expected
    newest = own_cli.lines("list", session, "--newest", "--limit", "2")
    assert [m["id"] for m in newest] == expected[:-3:-1]
    done = own_cli.run("list", session, "--limit", "1")
    assert sample()[0]["content"] in done.stdout
    assert "there are more" in done.stderr


def test_search_applies_words_and_filters(own_cli: Sagastore) -> None:
    own_cli.ok("import", SAMPLE)
    hits = own_cli.lines("search", "reservation", "--role", "user", "--limit", "0")
    assert hits
    assert all(hit["role"] == "user" for hit in hits)
    assert all("\x02" in hit["snippet"] for hit in hits)
    assert list(hits[0])[-2:] == ["score", "snippet"]
    since = own_cli.lines(
        "search", "--since", "2025-01-01T00:00:22", "--until", "2025-01-01 00:00:34"
    )
    assert [hit["id"] for hit in since] == [m["id"] for m in (sample()[3], sample()[2])]
    turn = own_cli.lines("search", "--metadata", '{"turn": 0}', "--order", "oldest", "--limit", "3")
    assert [hit["id"] for hit in turn] == [m["id"] for m in sample() if m["metadata"]["turn"] == 0][
        :3
    ]
    text = own_cli.run("search", "reservation", "--limit", "2")
    assert "\x02" not in text.stdout
    assert "there are more" in text.stderr
    assert "no messages match" in own_cli.run("search", "xyzzy").stderr


def test_ping_prints_health_and_stores(cli: Sagastore) -> None:
    answer = cli.json("ping")
    assert answer["status"] == "SERVING"
    assert answer["phase"] == "sqlite-only"
    assert "serving" in cli.ok("ping")


def test_common_options_work_before_and_after_the_command(cli: Sagastore) -> None:
    _save(cli, "options-1")
    target = cli.env.pop("SAGASTORE_TARGET")
    before = cli.ok("--target", target, "--json", "get", "options-1")
    assert cli.ok("get", "options-1", "--json", "--target", target) == before


def test_unreachable_server_is_reported_in_one_line(cli: Sagastore) -> None:
    done = cli.run("--target", "127.0.0.1:1", "--timeout", "1", "get", "x")
    assert (done.returncode, done.stdout) == (4, "")
    line = "cannot reach 127.0.0.1:1: connection refused; is the server running? (gave up after "
    assert done.stderr.startswith(f"sagastore: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ("save", "x"),
        ("search", "--since", "yesterday"),
        ("search", "--metadata", "[1]"),
        ("search", "--limit", "-1"),
        ("nonsense",),
        ("delete", "--if-revision", "1", "a", "b"),
        ("import", "x", "--batch-size", "1001"),
    ],
)
def test_usage_error_exits_with_2(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_token_is_not_sent_in_plain_text(cli: Sagastore) -> None:
    done = cli.run("--target", "db.example:1", "ping", SAGASTORE_TOKEN="s3cret")
    assert done.returncode == 1
    assert "--tls" in done.stderr
    assert "s3cret" not in done.stderr


def test_missing_token_file_is_reported(cli: Sagastore) -> None:
    done = cli.run("--token-file", "nowhere", "ping")
    assert (done.returncode, done.stderr) == (
        1,
        "sagastore: cannot read nowhere: No such file or directory\n",
    )


@pytest.mark.parametrize(
    "name", ["save", "get", "list", "search", "delete", "import", "export", "ping"]
)
def test_help_has_examples(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Example")
    assert "sagastore" in examples


def test_version_is_printed(cli: Sagastore) -> None:
    assert cli.ok("--version") == f"sagastore {__version__}\n"


def test_missing_extra_is_reported_with_install_command(cli: Sagastore) -> None:
    script = (
        "import importlib.util as u, sagastore.cli as c\n"
        "c.find_spec = lambda name: None if name == 'rich' else u.find_spec(name)\n"
        "c.main()"
    )
    done = subprocess.run(
        [command_line()[0], "-c", script],
        capture_output=True,
        text=True,
        env=cli.env,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == ("sagastore: the command line needs rich: pip install 'sagastore[cli]'\n")
