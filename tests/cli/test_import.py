"""Imports into a real server."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from sagastore_server.cli.main import cli as server_cli
from tests.cli.command import SAMPLE, Sagastore, assert_ledger, by_id, many, sample, write_lines
from tests.cli.databases import legacy_database, store_database
from tests.conftest import ServerFactory
from tests.support.foreign_databases import FILES
from tests.support.legacy_db import legacy_db, numbered


def _export(cli: Sagastore, name: str = "export.jsonl") -> Path:
    path = cli.home / name
    cli.ok("export", path)
    return path


def test_import_and_export_round_trip(own_cli: Sagastore, server_process: ServerFactory) -> None:
    summary = own_cli.json("import", SAMPLE)
    counts = {"read": 400, "saved": 400, "unchanged": 0, "skipped": 0, "rejected": 0}
    assert summary == summary | counts
    first = _export(own_cli, "first.jsonl")
    assert_ledger(first, sample())
    second = _export(own_cli, "second.jsonl")
    assert first.read_bytes() == second.read_bytes()
    assert own_cli.ok("export", "-").encode() == first.read_bytes()

    empty = server_process(sqlite=own_cli.home / "other.db").start()
    other = Sagastore(empty.address, own_cli.home)
    other.ok("import", first)
    assert _export(other, "third.jsonl").read_bytes() == first.read_bytes()


def test_repeated_import_changes_nothing(own_cli: Sagastore) -> None:
    own_cli.ok("import", SAMPLE)
    before = own_cli.lines("list", sample()[0]["session_id"])
    assert own_cli.json("import", SAMPLE)["unchanged"] == 400
    assert own_cli.lines("list", sample()[0]["session_id"]) == before
    assert own_cli.checkpoints == []


def test_conflicts_replace_or_skip(own_cli: Sagastore, tmp_path: Path) -> None:
    old = [message | {"content": "old"} for message in sample()[:10]]
    own_cli.ok("import", write_lines(tmp_path / "old.jsonl", old))
    assert own_cli.json("import", SAMPLE, "--on-conflict", "skip")["skipped"] == 10
    assert own_cli.json("import", SAMPLE)["saved"] == 10
    assert_ledger(_export(own_cli), sample())


def test_standard_input_accepts_every_format(own_cli: Sagastore) -> None:
    text = SAMPLE.read_bytes()
    assert own_cli.json("import", "-", stdin=text)["saved"] == 400
    assert own_cli.json("import", "-", stdin=gzip.compress(text))["unchanged"] == 400
    database = legacy_database(own_cli.home / "memory.db").read_bytes()
    assert own_cli.json("import", "-", stdin=database)["saved"] == 3
    assert own_cli.json("import", "-", stdin=gzip.compress(database))["unchanged"] == 3
    done = own_cli.run("--json", "import", "-")
    assert (done.returncode, json.loads(done.stdout)["read"]) == (6, 0)
    note = "nothing of standard input was stored: it has no messages"
    assert json.loads(done.stderr) == {"note": note}
    assert own_cli.checkpoints == []


def test_lines_without_ids_are_stored_once(own_cli: Sagastore, tmp_path: Path) -> None:
    bare = [{key: m[key] for key in ("provider", "role", "content")} for m in sample()[:50]]
    path = write_lines(tmp_path / "bare.jsonl", bare)
    assert own_cli.json("import", path)["saved"] == 50
    assert own_cli.json("import", path, "--batch-size", "7")["unchanged"] == 50
    assert len(by_id(_export(own_cli))) == 50


def test_rejected_rows_are_listed_and_written_to_file(own_cli: Sagastore, tmp_path: Path) -> None:
    good = [json.dumps(message) for message in sample()[:30]]
    bad = [
        "{",
        '{"id": "x", "provider": "p", "role": "r", "content": "\\u0000", "metadata": {"a": 1.50}}',
    ]
    lines = [*good[:10], bad[0], *good[10:20], *([bad[1]] * 25), *good[20:]]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    rejects = tmp_path / "rejects.jsonl"
    done = own_cli.run("import", path, "--rejects", rejects, "--batch-size", "8")
    assert done.returncode == 0
    assert "line 11  line  is not JSON" in done.stdout
    assert "6 more; all are in" in done.stdout
    written = rejects.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["source_key"] for line in written] == [
        f"line {n}" for n in (11, *range(22, 47))
    ]
    assert json.loads(written[0]) == {
        "source_key": "line 11",
        "field": "line",
        "reason": json.loads(written[0])["reason"],
        "row": "{",
    }
    assert json.loads(written[1])["field"] == "content"
    assert written[1].endswith(f'"row":{bad[1]}}}')
    assert_ledger(_export(own_cli), sample()[:30])
    summary = own_cli.json("import", path)
    assert summary["rejected"] == 26
    assert len(summary["first_rejects"]) == 20
    done = own_cli.run("import", path, "--strict")
    assert done.returncode == 6
    assert "not everything" in done.stderr
    assert "26 rejected, 0 left behind" in done.stderr


def test_rejects_file_must_differ_from_the_source(cli: Sagastore, tmp_path: Path) -> None:
    path = Path(shutil.copy(SAMPLE, tmp_path / "x.jsonl"))
    done = cli.run("import", path, "--rejects", path)
    assert done.returncode == 1
    assert path.read_bytes() == SAMPLE.read_bytes()


def test_file_with_only_invalid_rows_is_rejected_row_by_row(cli: Sagastore, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n" * 5_000, encoding="utf-8")
    done = cli.run("--json", "import", path)
    assert (done.returncode, json.loads(done.stdout)["rejected"]) == (6, 5_000)
    assert "5,000 rows read, all rejected" in done.stderr


def test_many_invalid_rows_between_valid_rows_are_imported(
    own_cli: Sagastore, tmp_path: Path
) -> None:
    first, second, *_ = (json.dumps(message) + "\n" for message in sample())
    path = tmp_path / "bad.jsonl"
    path.write_text(first + "{}\n" * 55_000 + second, encoding="utf-8")
    summary = own_cli.json("import", path)
    assert (summary["saved"], summary["rejected"]) == (2, 55_000)


def test_databases_are_imported(own_cli: Sagastore, tmp_path: Path) -> None:
    legacy = legacy_database(tmp_path / "memory.db")
    rejects = tmp_path / "rejects.jsonl"
    summary = own_cli.json("import", legacy, "--rejects", rejects)
    assert (summary["saved"], summary["rejected"]) == (3, 4)
    rows = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
    assert [row["field"] for row in rows] == ["id", "timestamp", "metadata", "id"]
    assert rows[2]["row"]["metadata"] == '{"a":1,"a":2}'
    assert own_cli.json("import", store_database(tmp_path / "store.db"))["saved"] == 3
    text = _export(own_cli).read_text(encoding="utf-8")
    assert text.count('"metadata": {"n": 1.50}') == 4


def test_lines_without_id_and_time_keep_the_order_of_the_file(
    own_cli: Sagastore, tmp_path: Path
) -> None:
    turns = [
        {"provider": "openai", "role": "user", "content": f"turn {n}", "session_id": "talk"}
        for n in range(30)
    ]
    own_cli.ok("import", write_lines(tmp_path / "talk.jsonl", turns), "--batch-size", "7")
    listed = own_cli.lines("list", "talk", "--limit", "0")
    assert [message["content"] for message in listed] == [turn["content"] for turn in turns]


def test_unstorable_value_rejects_its_line_alone(own_cli: Sagastore, tmp_path: Path) -> None:
    values = ["1", "1e99999999999999999999", "9" * 200_000, "1e200000", '"\\ud800"', "NaN"]
    path = tmp_path / "odd.jsonl"
    head = '{"provider": "p", "role": "user", "content": "c", "metadata": {"a": '
    path.write_text("".join(f"{head}{value}}}}}\n" for value in [*values, "2"]), encoding="utf-8")
    summary = own_cli.json("import", path)
    assert (summary["saved"], summary["rejected"]) == (2, 5)
    assert [row["source_key"] for row in summary["first_rejects"]] == [
        f"line {n}" for n in range(2, 7)
    ]
    assert {row["field"] for row in summary["first_rejects"]} == {"metadata"}


def test_strict_counts_rows_that_are_left_behind(own_cli: Sagastore, tmp_path: Path) -> None:
    path = legacy_db(tmp_path / "memory.db", numbered(2))
    summary = own_cli.json("import", path)
    assert (summary["saved"], summary["rejected"], summary["left_behind"]) == (2, 0, 3)
    done = own_cli.run("import", path, "--strict")
    assert done.returncode == 6
    assert "also contains 3 files, which are not imported" in done.stderr
    assert "0 rejected, 3 left behind" in done.stderr
    assert "left behind" in done.stdout


def test_import_and_inspect_give_the_same_reasons(own_cli: Sagastore, tmp_path: Path) -> None:
    path, rejects = tmp_path / "memory.db", tmp_path / "rejects.jsonl"
    FILES["odd rows"](path)
    report = CliRunner().invoke(server_cli, ["inspect", str(path), "--json"])
    legacy = json.loads(report.stdout)["legacy"]
    summary = own_cli.json("import", path, "--rejects", rejects)
    assert (summary["saved"], summary["rejected"]) == (legacy["served"], legacy["quarantined"])
    written = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
    for row in written:
        del row["row"]
    assert written == legacy["set_aside"]
    assert summary["first_rejects"] == legacy["set_aside"][:20]


def test_damaged_end_of_a_file_loses_no_line_before_it(own_cli: Sagastore, tmp_path: Path) -> None:
    path = tmp_path / "garbage.gz"
    path.write_bytes(gzip.compress(SAMPLE.read_bytes()) + b"garbage at the end")
    done = own_cli.run("import", path)
    assert done.returncode == 1
    assert "after its gzip data there are bytes that are not gzip" in done.stderr
    assert done.stderr.startswith("sagastore: after 400 rows: cannot read")
    assert own_cli.json("import", SAMPLE)["unchanged"] == 400


def test_database_of_a_running_server_is_imported(
    own_cli: Sagastore, server_process: ServerFactory
) -> None:
    own_cli.ok("import", SAMPLE)
    other = Sagastore(
        server_process(sqlite=own_cli.home / "other.db").start().address, own_cli.home
    )
    assert other.json("import", own_cli.home / "sagastore.db")["saved"] == 400
    assert_ledger(_export(other), sample())


def test_batch_size_does_not_change_the_result(own_cli: Sagastore) -> None:
    assert own_cli.json("import", SAMPLE, "--batch-size", "1")["saved"] == 400
    assert own_cli.json("import", SAMPLE, "--batch-size", "399")["unchanged"] == 400


def test_large_messages_are_imported(own_cli: Sagastore, tmp_path: Path) -> None:
    messages = [
        message | {"content": f"{n} " + "漢" * 99_000} for n, message in enumerate(many(15))
    ]
    path = write_lines(tmp_path / "large.jsonl", messages)
    assert own_cli.json("import", path)["saved"] == 15
    assert_ledger(_export(own_cli), messages)


def test_import_refuses_a_database_larger_than_the_temporary_copy_may_be(
    cli: Sagastore, tmp_path: Path
) -> None:
    head = bytearray(b"SQLite format 3\x00".ljust(100, b"\x00"))
    head[16:18], head[28:32] = (4096).to_bytes(2, "big"), (2**19 + 1).to_bytes(4, "big")
    path = tmp_path / "memory.db.gz"
    path.write_bytes(gzip.compress(bytes(head)))
    done = cli.run("import", path, "--temp-limit", "2")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"sagastore: {path} is a database of more than 2 GiB, of which import would write a "
        "temporary copy; raise --temp-limit, or decompress it to a file and import that"
    )
