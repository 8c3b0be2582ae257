"""`sagastore sessions` and `files` against a real server."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import Sagastore


def _save(cli: Sagastore, session: str, content: str, *more: str) -> None:
    cli.ok("save", "--provider", "openai", "--role", "user", "--session", session, *more, content)


def test_life_of_a_session(own_cli: Sagastore) -> None:
    _save(own_cli, "trip", "Where shall we go?", "--timestamp", "2026-01-01 10:00")
    _save(own_cli, "trip", "To Porto.", "--timestamp", "2026-01-01 10:01")
    _save(own_cli, "other", "Hello", "--timestamp", "2026-01-01 09:00")
    assert own_cli.ok("sessions", "list") == (
        "Sessions:\n"
        "  trip  Where shall we go?  2  2026-01-01 10:01:00  openai\n"
        "  other  Hello  1  2026-01-01 09:00:00  openai\n"
    )
    own_cli.ok("sessions", "rename", "trip", "Trip to Porto")
    found = own_cli.lines("sessions", "list", "--title", "Trip")
    assert [session["session_id"] for session in found] == ["trip"]
    shown = own_cli.json("sessions", "show", "trip")
    assert (shown["title"], shown["message_count"]) == ("Trip to Porto", 2)
    assert [m["content"] for m in shown["messages"]] == ["Where shall we go?", "To Porto."]
    newest = own_cli.ok("list", "trip", "--newest")
    assert newest.startswith("2  user  openai  2026-01-01 10:01:00\n    To Porto.\n")
    assert own_cli.run("sessions", "delete", "trip").returncode == 2
    assert own_cli.ok("sessions", "delete", "trip", "--yes") == "deleted trip, 2 messages\n"
    assert own_cli.run("sessions", "show", "trip").returncode == 3
    assert own_cli.run("sessions", "rename", "trip", "x").returncode == 3
    assert own_cli.json("delete", "--session", "other", "--yes")["deleted_messages"] == 1
    assert own_cli.run("sessions", "list").stderr == "sagastore: no sessions match\n"


def test_life_of_a_file(own_cli: Sagastore, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("the notes", encoding="utf-8")
    saved = own_cli.json("files", "save", path, "--text", path, "--tag", "a", "--id", "f")
    assert (saved["id"], saved["created"], saved["durable_on"]) == ("f", True, ["sqlite"])
    file = own_cli.json("files", "show", "f")
    assert (file["filename"], file["file_type"], file["file_size"]) == ("notes.txt", "txt", 9)
    assert file["extracted_text"] == "the notes"
    assert [f["id"] for f in own_cli.lines("files", "list", "--tag", "a")] == ["f"]
    assert own_cli.run("files", "list", "--tag", "b").stderr == "sagastore: no files match\n"
    assert own_cli.ok("files", "delete", "f") == "deleted f\n"
    assert own_cli.run("files", "show", "f").returncode == 3


def test_stats_of_a_real_server(own_cli: Sagastore) -> None:
    _save(own_cli, "trip", "hello")
    document = own_cli.json("stats")
    assert (document["phase"], document["reads_from"]) == ("sqlite-only", "sqlite")
    assert document["stores"][0]["healthy"]
    counts = {name: document[name] for name in ("messages", "sessions", "files")}
    assert counts == {"messages": 1, "sessions": 1, "files": 0}
