"""The public API of the library; a change of this list is a change of the API."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sagastore
from sagastore import errors

NAMES = [
    "TLS",
    "AbortedError",
    "AlreadyExistsError",
    "AppendResult",
    "ArgumentTypeError",
    "AsyncClient",
    "AsyncFileClient",
    "AsyncMigrationClient",
    "AsyncPager",
    "AsyncSessionClient",
    "Backfill",
    "BackfillPace",
    "BackfillState",
    "BatchGetResult",
    "Blocker",
    "BulkAck",
    "BulkProgress",
    "BulkResult",
    "Client",
    "Consistency",
    "DeadlineExceededError",
    "Durability",
    "ExportBatch",
    "FailedPreconditionError",
    "FieldViolation",
    "File",
    "FileClient",
    "FileSaveResult",
    "InternalError",
    "InvalidArgumentError",
    "Message",
    "Migration",
    "MigrationClient",
    "Mismatch",
    "MismatchKind",
    "NotFoundError",
    "OnConflict",
    "Order",
    "Page",
    "Pager",
    "PermissionDeniedError",
    "Phase",
    "PreconditionViolation",
    "QuarantinedRow",
    "Reads",
    "RejectedMessage",
    "ResourceExhaustedError",
    "RetryPolicy",
    "SagaStoreError",
    "SaveResult",
    "SavedMessage",
    "SearchResult",
    "ServingStatus",
    "Session",
    "SessionClient",
    "ShadowDifference",
    "ShadowReads",
    "Store",
    "StoreHealth",
    "TokenFile",
    "TruncateResult",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Verification",
    "VerifyProgress",
    "WrongEventLoopError",
    "__version__",
    "errors",
    "new_id",
]

METHODS = [
    "batch_get",
    "bulk_save",
    "bulk_save_stream",
    "close",
    "delete",
    "export",
    "export_batches",
    "files",
    "get",
    "health",
    "list",
    "migration",
    "observe",
    "position",
    "save",
    "search",
    "sessions",
]

SESSION_METHODS = ["append", "delete", "get", "list", "truncate", "update"]
FILE_METHODS = ["delete", "get", "list", "save"]
MIGRATION_METHODS = ["change_phase", "control_backfill", "get", "quarantine", "verify", "watch"]


def test_public_names_are_exported() -> None:
    assert sorted(sagastore.__all__) == sorted(NAMES)
    assert sorted(dir(sagastore)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_name_can_be_imported(name: str) -> None:
    assert getattr(sagastore, name) is not None


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sagastore.nonsense


def test_every_error_is_exported() -> None:
    ours = {n for n, v in vars(errors).items() if inspect.isclass(v) and n != "Detail"}
    assert {n for n in ours if n.endswith("Error")} <= set(NAMES)


def _public(thing: object) -> list[str]:
    return sorted(n for n in dir(thing) if not n.startswith("_"))


def test_clients_have_the_public_methods() -> None:
    sync = sagastore.Client("127.0.0.1:1")
    assert _public(sync) == METHODS
    assert _public(sagastore.AsyncClient("127.0.0.1:1")) == METHODS
    assert _public(sync.sessions) == _public(sagastore.AsyncSessionClient) == SESSION_METHODS
    assert _public(sync.files) == _public(sagastore.AsyncFileClient) == FILE_METHODS
    assert _public(sync.migration) == MIGRATION_METHODS
    assert _public(sagastore.AsyncMigrationClient) == MIGRATION_METHODS
    sync.close()


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_both_clients_have_the_same_parameters(name: str) -> None:
    groups = {
        "files": (sagastore.AsyncFileClient, sagastore.FileClient, FILE_METHODS),
        "migration": (sagastore.AsyncMigrationClient, sagastore.MigrationClient, MIGRATION_METHODS),
        "sessions": (sagastore.AsyncSessionClient, sagastore.SessionClient, SESSION_METHODS),
    }
    own = (sagastore.AsyncClient, sagastore.Client, [name])
    asynchronous, blocking, methods = groups.get(name, own)
    pairs = [(getattr(asynchronous, n), getattr(blocking, n)) for n in methods]
    for both in pairs:
        left, right = (getattr(method, "fget", method) for method in both)
        ours, theirs = inspect.signature(left).parameters, inspect.signature(right).parameters
        assert list(ours) == list(theirs)
        for parameter in ours:
            assert ours[parameter].default == theirs[parameter].default
            assert ours[parameter].kind == theirs[parameter].kind


def test_public_names_have_docstrings() -> None:
    for name in NAMES:
        thing = getattr(sagastore, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert thing.__doc__, name


def test_importing_the_protocol_stays_cheap() -> None:
    program = (
        "import sys, sagastore.v1\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'asyncio', 'json')"
        " or m.startswith('sagastore.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['sagastore._version', 'sagastore.v1']"


def test_version_equals_the_distribution() -> None:
    file = Path(__file__).parents[2] / "client" / "pyproject.toml"
    assert tomllib.loads(file.read_text())["project"]["version"] == sagastore.__version__
