"""Commands about sessions and files, and `stats`, against scripted services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sagastore.cli.app import app
from sagastore.v1 import file_pb2, message_pb2, session_pb2
from tests.cli import states
from tests.cli.command import Sagastore
from tests.cli.scripted_migration import ScriptedMigration
from tests.cli.scripted_sessions import ScriptedSessions, scripted_sessions
from tests.cli.terminal import Terminal

DAY = 86_400


@pytest.fixture
def script() -> Iterator[ScriptedSessions]:
    """Serve two sessions, of 1234 and of no messages, and a file."""
    with scripted_sessions() as script:
        trip = session_pb2.Session(
            session_id="trip",
            title="Trip to Porto",
            metadata_json='{"user": 7}',
            message_count=1234,
            revision=99,
            providers=["anthropic", "openai"],
            first_message="Where shall we go?",
            last_sequence=5000,
        )
        trip.first_time.seconds, trip.last_time.seconds = DAY, 2 * DAY
        trip.created_at.seconds = trip.updated_at.seconds = 2 * DAY
        empty = session_pb2.Session(session_id="empty", first_message="x" * 100)
        empty.created_at.seconds = 3 * DAY
        script.sessions = {"trip": trip, "empty": empty}
        for number in range(3):
            message = message_pb2.Message(
                id=f"m{number}", provider="openai", role="user", content=f"text {number}"
            )
            message.timestamp.seconds, message.sequence = DAY + number, 70 + number
            script.messages.append(message)
        script.files = {
            "f": file_pb2.File(
                id="f",
                filename="a.pdf",
                filepath="/srv/a.pdf",
                file_type="pdf",
                extracted_text="line 1\nline 2",
                tags=["x", "y"],
                file_size=12_345,
                revision=3,
            )
        }
        yield script


@pytest.fixture
def cli(script: ScriptedSessions, tmp_path: Path) -> Sagastore:
    return Sagastore(script.address, tmp_path)


# Sessions


def test_sessions_are_listed(cli: Sagastore, script: ScriptedSessions) -> None:
    assert cli.ok("sessions", "list") == (
        "Sessions:\n"
        "  trip  Trip to Porto  1,234  1970-01-03 00:00:00  anthropic, openai\n"
        f"  empty  {'x' * 59}…  0  1970-01-04 00:00:00  -\n"
    )
    first, second = cli.lines("sessions", "list")
    assert list(first) == [
        *("session_id", "title", "metadata", "message_count", "first_time", "last_time"),
        *("created_at", "updated_at", "revision", "providers", "first_message", "last_sequence"),
    ]
    assert (first["message_count"], first["metadata"]) == (1234, {"user": 7})
    assert first["last_time"] == "1970-01-03T00:00:00+00:00"
    assert (second["last_time"], second["providers"]) == (None, [])
    done = cli.run("sessions", "list", "--limit", "1")
    assert done.stdout.count("\n") == 2
    assert done.stderr == ("sagastore: 1 shown; there are more: --limit N shows N, --limit 0 all\n")
    script.sessions.clear()
    assert cli.run("sessions", "list").stderr == "sagastore: no sessions match\n"


def test_conditions_of_a_list_are_sent(cli: Sagastore, script: ScriptedSessions) -> None:
    cli.ok(
        *("sessions", "list", "--oldest", "--provider", "openai", "--title", "Trip"),
        *("--since", "1970-01-02", "--until", "1970-01-03", "--metadata", '{"user": 7}'),
    )
    (request,) = script.requests
    assert (request.oldest_first, request.provider, request.title_prefix) == (
        *(True, "openai"),
        "Trip",
    )
    assert (request.start_time.seconds, request.end_time.seconds) == (DAY, 2 * DAY)
    assert (request.metadata_json, request.page_size) == ('{"user":7}', 21)


def test_session_is_shown_with_its_last_messages(cli: Sagastore) -> None:
    text = cli.ok("sessions", "show", "trip", "--messages", "2")
    assert text.startswith(
        "session       trip\n"
        "title         Trip to Porto\n"
        "messages      1,234\n"
        "providers     anthropic, openai\n"
        "first message Where shall we go?\n"
        "time          1970-01-02 00:00:00 to 1970-01-03 00:00:00 UTC\n"
        'metadata      {"user": 7}\n'
        "created       1970-01-03 00:00:00 UTC\n"
        "changed       1970-01-03 00:00:00 UTC, revision 99\n\n"
        "1,233  user  openai  1970-01-02 00:00:01\n    text 1\n"
    )
    assert "\n1,234  user  openai  1970-01-02 00:00:02\n    text 2\n" in text
    document = cli.json("sessions", "show", "trip", "--messages", "2")
    assert document["title"] == "Trip to Porto"
    assert [message["id"] for message in document["messages"]] == ["m1", "m2"]
    assert document["messages"][0]["sequence"] == 71
    assert cli.json("sessions", "show", "trip", "--messages", "0")["messages"] == []
    done = cli.run("sessions", "show", "nowhere")
    assert (done.returncode, done.stdout) == (3, "")


def test_rename_changes_the_title_only(cli: Sagastore, script: ScriptedSessions) -> None:
    script.conflicts = 2
    assert "Porto again" in cli.ok("sessions", "rename", "trip", "Porto again")
    request = script.requests[-1]
    assert list(request.update_mask.paths) == ["title"]
    assert request.if_revision == 99, "a session that does not exist must not be created"
    assert cli.json("sessions", "rename", "trip", "New")["title"] == "New"
    assert cli.run("sessions", "rename", "nowhere", "New").returncode == 3
    script.conflicts = 9
    done = cli.run("sessions", "rename", "trip", "New")
    assert (done.returncode, done.stdout) == (1, "")
    assert "changes all the time; try again" in done.stderr


# Deletion


DELETIONS = pytest.mark.parametrize(
    "command", [("sessions", "delete", "trip"), ("delete", "--session", "trip")]
)


@DELETIONS
def test_deletion_without_a_terminal_requires_yes(
    cli: Sagastore, script: ScriptedSessions, command: tuple[str, ...]
) -> None:
    done = cli.run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "requires --yes" in done.stderr
    assert not script.requests
    assert cli.ok(*command, "--yes") == "deleted trip, 1,234 messages\n"
    assert cli.run(*command, "--yes").returncode == 3


@DELETIONS
@pytest.mark.parametrize("answer", ["y", "n"])
def test_deletion_is_confirmed_on_a_terminal(
    cli: Sagastore, script: ScriptedSessions, command: tuple[str, ...], answer: str
) -> None:
    terminal = Terminal(cli, *command)
    question = "Delete the session 'trip' ('Trip to Porto') with 1,234 messages? [y/N]"
    terminal.wait_for(question)
    terminal.type(f"{answer}\n")
    status = terminal.end()
    assert (status, "trip" in script.sessions) == ((0, False) if answer == "y" else (1, True))
    assert ("not confirmed; nothing has changed" in terminal.text) == (answer == "n")


def test_deletion_of_an_unknown_session_asks_nothing(cli: Sagastore) -> None:
    terminal = Terminal(cli, "sessions", "delete", "nowhere")
    assert terminal.end() == 3
    assert "Delete" not in terminal.text


def test_deletion_is_printed_as_json(cli: Sagastore, script: ScriptedSessions) -> None:
    document = cli.json("sessions", "delete", "trip", "--yes", "--if-revision", "99")
    expected = {"session_id": "trip", "deleted": True, "deleted_messages": 1234}
    assert document == expected | {"position": ""}
    assert script.requests[-1].if_revision == 99


@pytest.mark.parametrize(
    "args",
    [
        ("delete", "--yes"),
        ("delete", "a", "--session", "s"),
        ("sessions", "rename", "s"),
        ("sessions", "list", "--limit", "-1"),
        ("sessions", "delete", "s", "--if-revision", "0"),
        ("files", "save", "without-extension"),
        ("files", "delete", "a", "b", "--if-revision", "1"),
    ],
)
def test_usage_error_exits_with_2(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


# Messages of a session


def test_list_numbers_the_messages(cli: Sagastore, script: ScriptedSessions) -> None:
    text = cli.ok("list", "trip")
    assert [line for line in text.splitlines() if "openai" in line] == [
        f"{n}  user  openai  1970-01-02 00:00:0{n - 1}" for n in (1, 2, 3)
    ]
    newest = cli.ok("list", "trip", "--newest", "--limit", "2")
    places = [line.split()[0] for line in newest.splitlines() if "openai" in line]
    assert places == ["1,234", "1,233"], "the places in the conversation, not in the output"
    script.requests.clear()
    assert [m["sequence"] for m in cli.lines("list", "trip", "--newest")] == [72, 71, 70]
    assert len(script.requests) == 1, "JSON has no places and needs no session"


# Files


def test_files_are_listed_and_shown(cli: Sagastore, script: ScriptedSessions) -> None:
    assert cli.ok("files", "list", "--tag", "x") == ("Files:\n  f  a.pdf  pdf  12,345  -  x, y\n")
    assert list(script.requests[-1].tags) == ["x"]
    (line,) = cli.lines("files", "list")
    assert line == cli.json("files", "show", "f")
    assert (line["file_size"], line["extracted_text"]) == (12_345, "line 1\nline 2")
    text = cli.ok("files", "show", "f")
    assert text.startswith("id            f\nname          a.pdf\npath          /srv/a.pdf\n")
    assert text.endswith("saved         revision 3\n\nline 1\nline 2\n")
    done = cli.run("files", "delete", "f", "nothing")
    assert (done.returncode, done.stdout) == (3, "deleted f\n")
    assert cli.run("files", "list").stderr == "sagastore: there are no files\n"


def test_file_record_is_derived_from_a_local_file(
    cli: Sagastore, script: ScriptedSessions, tmp_path: Path
) -> None:
    path = tmp_path / "Contract.PDF"
    path.write_bytes(b"12345")
    text = cli.ok("files", "save", path, "--text", "-", "--tag", "a", stdin="the text\n")
    assert "revision 1, created, durable on sqlite" in text
    file = script.requests[-1].file
    assert (file.filename, file.filepath, file.file_type) == ("Contract.PDF", str(path), "pdf")
    assert (file.file_size, file.extracted_text, list(file.tags)) == (5, "the text", ["a"])
    saved = cli.json(
        *("files", "save", "s3://bucket/notes", "--name", "n", "--type", "text/plain"),
        *("--size", "7", "--id", "x", "--uploaded-at", "1970-01-02", "--metadata", '{"a": 1}'),
    )
    expected = {"id": "x", "revision": 1, "created": True, "durable_on": ["sqlite"]}
    assert saved == expected | {"position": ""}
    file = script.requests[-1].file
    assert (file.filename, file.file_type, file.file_size) == ("n", "text/plain", 7)
    assert (file.uploaded_at.seconds, file.metadata_json) == (DAY, '{"a":1}')
    done = cli.run("files", "save", path, "--text", tmp_path / "missing.txt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("missing.txt: No such file or directory\n")


# Stats


def test_stats_are_printed(scripted: ScriptedMigration, scripted_cli: Sagastore) -> None:
    scripted.state = states.read_postgres()
    document = scripted_cli.json("stats")
    assert list(document) == [
        *(
            "messages",
            "sessions",
            "files",
            "phase",
            "reads_from",
            "stores",
            "journal_rows",
            "quarantined",
        )
    ]
    assert document["phase"] == "read-postgres"
    stores = {store["store"]: store["messages"] for store in document["stores"]}
    assert document["messages"] == stores["postgresql"]
    assert (document["sessions"], document["files"]) == (1_204, None)
    text = scripted_cli.ok("stats")
    counts = f"messages      {document['messages']:,}\nsessions      1,204\nfiles         unknown\n"
    assert text.startswith(f"{counts}phase         read-postgres\n")
    assert "\npostgresql    healthy" in text


@pytest.mark.parametrize(
    "args",
    [
        *(("sessions", name) for name in ("list", "show", "delete", "rename")),
        *(("files", name) for name in ("list", "show", "delete", "save")),
        ("stats",),
    ],
)
def test_help_has_examples(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*args, "--help"])
    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Example")
    assert "sagastore" in examples
