"""Audit trail of a real server: every change, who made it, and the outcome."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from sagastore import Client, InvalidArgumentError, Message, Phase, SagaStoreError
from sagastore.v1 import file_pb2, migration_pb2, session_pb2, storage_pb2
from sagastore_server.interfaces.access import Role
from sagastore_server.rpc.admission import required_role
from sagastore_server.rpc.change_details import CHANGES, STREAMS
from sagastore_server.security.access_rules import digest_of
from tests.security.pki import Pki, entry, environment, write_access
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

ServerFactory = Callable[..., ServerProcess]
ADMIN_READS = {"GetMigration", "WatchMigration", "ListQuarantine"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerFactory]:
    """Return a function that starts a server with two tokens and the given settings."""
    access = write_access(
        tmp_path / "access.toml",
        entry("token", "ops", "admin", token="ops-token"),
        entry("token", "look", "reader", token="look-token"),
    )
    started: list[ServerProcess] = []

    def start(**settings: str) -> ServerProcess:
        env = environment(access=access) | {
            f"SAGASTORE_{k.upper()}": v for k, v in settings.items()
        }
        started.append(ServerProcess(tmp_path / "saga.db", env=env))
        return started[-1].start()

    yield start
    for process in started:
        process.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def changes(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "change"]


def test_every_rpc_is_a_known_change_or_a_known_read() -> None:
    files = (storage_pb2, session_pb2, file_pb2, migration_pb2)
    services = [one for file in files for one in file.DESCRIPTOR.services_by_name.values()]
    methods = [method for service in services for method in service.methods]
    writes = {one.full_name for one in methods if required_role(one) > Role.READER}
    reads = {name for name in writes if name.rpartition(".")[2] in ADMIN_READS}
    assert writes - reads == CHANGES.keys() | STREAMS
    assert len(reads) == len(ADMIN_READS)


def test_change_has_the_id_of_its_call_with_log_calls(server: ServerFactory) -> None:
    process = server(log_calls="true")
    with Client(process.address, token="ops-token") as client:
        client.save(Message("a", "user", "the-content", id="m"))
    assert process.terminate() == 0
    (change,) = changes(process.events)
    (logged,) = (one for one in process.events if one["event"] == "call" and one["caller"] == "ops")
    assert change["call"] == logged["call"]


def test_each_change_is_one_line(server: ServerFactory) -> None:
    process = server()
    with Client(process.address, token="ops-token") as client:
        made = client.save(Message("a", "user", "the-content", session_id="s"))
        client.save(Message("a", "user", "the-content", id="m"))
        client.bulk_save(Message("a", "user", "the-content", id=f"b-{n}") for n in range(1500))
        turn = client.sessions.append("s", [Message("a", "user", "the-content", id="t")])
        client.sessions.update("s", title="the-content")
        client.sessions.truncate("s", drop_last=1)
        client.delete("m")
        client.sessions.delete("s")
        for call in (
            lambda: client.save(Message("a", "user", "x", id="b-1"), if_revision=99),
            lambda: client.delete("none"),
            lambda: client.migration.change_phase(Phase.DUAL_WRITE, dry_run=True),
            lambda: client.migration.control_backfill(paused=True),
            lambda: list(client.migration.verify(repair=True)),
        ):
            with pytest.raises(SagaStoreError):
                call()
        with suppress(SagaStoreError):
            list(client.migration.verify())
        client.get("b-1")
    assert process.terminate() == 0
    found = changes(process.events)
    credential = digest_of("ops-token").hex()[:12]
    assert {(one["caller"], one["role"], one["credential"]) for one in found} == {
        ("ops", "admin", credential)
    }
    assert all(one["peer"].startswith("127.0.0.1:") for one in found)
    assert all(one["timestamp"].endswith("Z") for one in found)
    shown = [
        (
            one["method"].rpartition("/")[2],
            *(one.get(name) for name in ("code", "id", "session", "revision")),
        )
        for one in found
    ]
    assert shown[:3] == [
        ("Save", "OK", made.id, "s", made.revision),
        ("Save", "OK", "m", None, 2),
        ("BulkSave", "OK", None, None, None),
    ]
    assert {name: found[2][name] for name in ("batches", "answered", "saved", "rejected")} == {
        "batches": found[2]["answered"],
        "answered": found[2]["answered"],
        "saved": 1500,
        "rejected": 0,
    }
    assert found[3]["ids"] == ["t"]
    assert found[3]["revision"] == turn.session.revision
    assert [one[:4] for one in shown[3:8]] == [
        ("Append", "OK", None, "s"),
        ("UpdateSession", "OK", None, "s"),
        ("TruncateSession", "OK", None, "s"),
        ("Delete", "OK", "m", None),
        ("DeleteSession", "OK", None, "s"),
    ]
    assert [one[:3] for one in shown[8:]] == [
        ("Save", "ABORTED", "b-1"),
        ("Delete", "NOT_FOUND", "none"),
        ("ChangePhase", "FAILED_PRECONDITION", None),
        ("ControlBackfill", "FAILED_PRECONDITION", None),
        ("Verify", "FAILED_PRECONDITION", None),
    ]
    assert found[10]["phase"] == "PHASE_DUAL_WRITE"
    assert found[10]["dry_run"] is True
    assert found[12]["repair"] is True
    assert "the-content" not in "\n".join(process.stderr)


def test_missing_permission_is_a_line_with_the_caller(server: ServerFactory) -> None:
    process = server()
    with Client(process.address, token="look-token") as client, pytest.raises(SagaStoreError):
        client.delete("m")
    assert process.terminate() == 0
    (line,) = [event for event in process.events if event["event"] == "access refused"]
    assert (line["code"], line["caller"], line["role"]) == ("PERMISSION_DENIED", "look", "reader")
    assert changes(process.events) == []


async def test_file_is_private_and_survives_rotation(server: ServerFactory, tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    process = server(audit=str(audit))
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600
    with Client(process.address, token="ops-token") as client:
        client.save(Message("a", "user", "x", id="first"))
        await until(lambda: bool(audit.read_bytes()))
        moved = audit.rename(tmp_path / "audit.log.1")

        def save_again() -> bool:
            client.save(Message("a", "user", "x", id="again"))
            return audit.exists() and bool(audit.read_bytes())

        await until(save_again)
        assert stat.S_IMODE(audit.stat().st_mode) == 0o600
        os.truncate(audit, 0)  # As copytruncate of logrotate does.
        client.save(Message("a", "user", "x", id="last"))
    assert process.terminate() == 0
    assert lines(moved)[0]["id"] == "first"
    assert lines(audit)[-1]["id"] == "last"
    assert changes(process.events) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_audit_file_must_be_a_regular_file(tmp_path: Path, kind: str) -> None:
    audit = tmp_path / "audit.log"
    if kind == "link":
        audit.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(audit)
    else:
        audit.mkdir()
    process = ServerProcess(tmp_path / "saga.db", env={"SAGASTORE_AUDIT": str(audit)})
    with closing(process):
        process.spawn()
        assert process.wait() == 1
    assert f"cannot open the audit file {audit}" in process.stderr[-1]
    assert not (tmp_path / "elsewhere").exists()


def test_without_authentication_changes_are_recorded_on_request_only(tmp_path: Path) -> None:
    for audit, expected in (("auto", 0), ("log", 1)):
        process = ServerProcess(tmp_path / "saga.db", env={"SAGASTORE_AUDIT": audit})
        with closing(process):
            process.start()
            with Client(process.address) as client:
                client.save(Message("a", "user", "x", id="m"))
            assert process.terminate() == 0
            found = changes(process.events)
        assert len(found) == expected
    assert (found[0]["caller"], found[0]["role"]) == ("anyone", "admin")
    assert "credential" not in found[0]


def test_certificate_is_named_by_its_fingerprint(pki: Pki, tmp_path: Path) -> None:
    """Without an access file, every certificate of the authority is admitted."""
    env = environment(pki.server(), pki.ca) | {"SAGASTORE_AUDIT": "log"}
    process = ServerProcess(tmp_path / "saga.db", env=env)
    with closing(process):
        process.start()
        with Client(process.address, tls=pki.client()) as client:
            client.save(Message("a", "user", "x", id="m"))
        assert process.terminate() == 0
    (line,) = changes(process.events)
    assert line["caller"] == "client.example"
    assert line["credential"].startswith("cert:")
    assert len(line["credential"]) == len("cert:") + 12


def test_long_ids_are_cut_and_the_line_stays_short(server: ServerFactory) -> None:
    process = server()
    with Client(process.address, token="ops-token") as client:
        for text in ("i" * 1_000_000, "\x01" * 128, "\U0001f600" * 128):
            turn = [Message("a", "user", "x", id=f"{n}{text}"[:128]) for n in range(9)]
            with suppress(InvalidArgumentError):
                client.sessions.append(text, turn)
    assert process.terminate() == 0
    assert len(changes(process.events)) == 3
    assert max(len(line.encode()) for line in process.stderr) < 4096
