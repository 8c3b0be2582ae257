"""Client library of SagaStore, a storage service for AI conversations.

    from sagastore import Client, Message

    with Client("127.0.0.1:50051", timeout=5) as client:
        saved = client.save(Message("openai", "user", "hello", tags=["greeting"]))
        print(client.get(saved.id).content)

`AsyncClient` has the same methods for asyncio. The exceptions of `sagastore.errors`
can also be imported from this package.

Names are loaded on first use. Importing this package, which also happens when
`sagastore.v1` is imported, therefore takes almost no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sagastore._version import __version__

if TYPE_CHECKING:
    from sagastore import errors
    from sagastore._async_client import AsyncClient
    from sagastore._async_files import AsyncFileClient
    from sagastore._async_migration import AsyncMigrationClient
    from sagastore._async_paging import AsyncPager
    from sagastore._async_sessions import AsyncSessionClient
    from sagastore._consistency import Consistency
    from sagastore._enums import (
        BackfillPace,
        BackfillState,
        Durability,
        MismatchKind,
        OnConflict,
        Order,
        Phase,
        Reads,
        ServingStatus,
        Store,
    )
    from sagastore._file_model import File, FileSaveResult
    from sagastore._ids import new_id
    from sagastore._migration_model import (
        Backfill,
        Blocker,
        Migration,
        Mismatch,
        QuarantinedRow,
        ShadowDifference,
        ShadowReads,
        StoreHealth,
        Verification,
        VerifyProgress,
    )
    from sagastore._model import (
        BatchGetResult,
        BulkAck,
        BulkProgress,
        BulkResult,
        ExportBatch,
        Message,
        Page,
        RejectedMessage,
        SaveResult,
        SearchResult,
    )
    from sagastore._retry import RetryPolicy
    from sagastore._session_model import AppendResult, SavedMessage, Session, TruncateResult
    from sagastore._sync_client import Client
    from sagastore._sync_files import FileClient
    from sagastore._sync_migration import MigrationClient
    from sagastore._sync_paging import Pager
    from sagastore._sync_sessions import SessionClient
    from sagastore._target import TokenFile
    from sagastore._tls import TLS
    from sagastore.errors import (
        AbortedError,
        AlreadyExistsError,
        ArgumentTypeError,
        DeadlineExceededError,
        FailedPreconditionError,
        FieldViolation,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        PreconditionViolation,
        ResourceExhaustedError,
        SagaStoreError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
        WrongEventLoopError,
    )

__all__ = [
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

_HOMES = {
    "_async_files": ("AsyncFileClient",),
    "_async_sessions": ("AsyncSessionClient",),
    "_sync_files": ("FileClient",),
    "_sync_sessions": ("SessionClient",),
    "_session_model": ("AppendResult", "SavedMessage", "Session", "TruncateResult"),
    "_file_model": ("File", "FileSaveResult"),
    "_async_client": ("AsyncClient",),
    "_async_migration": ("AsyncMigrationClient",),
    "_consistency": ("Consistency",),
    "_enums": (
        "BackfillPace",
        "BackfillState",
        "Durability",
        "MismatchKind",
        "OnConflict",
        "Order",
        "Phase",
        "Reads",
        "ServingStatus",
        "Store",
    ),
    "_ids": ("new_id",),
    "_migration_model": (
        "Backfill",
        "Blocker",
        "Migration",
        "Mismatch",
        "QuarantinedRow",
        "ShadowDifference",
        "ShadowReads",
        "StoreHealth",
        "Verification",
        "VerifyProgress",
    ),
    "_model": (
        "BatchGetResult",
        "BulkAck",
        "BulkProgress",
        "BulkResult",
        "ExportBatch",
        "Message",
        "Page",
        "RejectedMessage",
        "SaveResult",
        "SearchResult",
    ),
    "_async_paging": ("AsyncPager",),
    "_retry": ("RetryPolicy",),
    "_sync_client": ("Client",),
    "_sync_migration": ("MigrationClient",),
    "_sync_paging": ("Pager",),
    "_target": ("TokenFile",),
    "_tls": ("TLS",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name == "errors":
        return import_module("sagastore.errors")
    home = _HOME_OF.get(name)
    if home is None:
        # All other public names belong to the exceptions.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "errors"
    value = getattr(import_module(f"sagastore.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
