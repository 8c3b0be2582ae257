"""Settings of the server: their model, defaults and descriptions.

Precedence: command line, environment, TOML file, default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagastore_server.config import worker_share
from sagastore_server.config.address import Address
from sagastore_server.config.sources import (
    ENV_PREFIX,
    Layers,
    Problem,
    SettingsError,
    gather,
    relation_error,
    validated,
)
from sagastore_server.config.types import (
    AUTO,
    LOG,
    OFF,
    Bytes,
    Count,
    Dsn,
    File,
    HostPort,
    HostPortOrOff,
    InputFile,
    Kind,
    Output,
    Rate,
    Replicas,
    Seconds,
    SecretFile,
    Share,
    Url,
)

__all__ = ["DEFAULT_LISTEN", "ENV_PREFIX", "OFF", "Settings", "SettingsError", "load"]

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_OPS_LISTEN = "127.0.0.1:9464"
MIB = 1024 * 1024


def _in_lower_case(level: object) -> object:
    return level.lower() if isinstance(level, str) else level


LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(_in_lower_case),
    Kind("LEVEL", "debug, info, warning or error"),
]


def default_sqlite() -> Path:
    """Return the default store: a file in the user's data directory."""
    return platformdirs.user_data_path("sagastore", appauthor=False) / "sagastore.db"


class Settings(BaseSettings):
    """Settings of the server.

    Each field is also the variable ``SAGASTORE_<FIELD>``, an option of ``serve`` and a row of
    docs/reference/configuration.md. The docstring of the field is its description in both places.
    `GROUPS` in `reference` names the first field of each group.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    listen: HostPort = DEFAULT_LISTEN
    """Address to listen on; port 0 is any free port."""
    allow_insecure: bool = False
    """Accept connections from other machines without encryption or authentication."""
    drain_seconds: Seconds = Field(default=30.0, ge=0, le=3600)
    """Time for calls in progress after SIGTERM or Ctrl+C, in seconds."""
    workers: Count = Field(default=1, ge=1, le=64)
    """Processes that serve the address, each on about one core; more than 1 needs ``postgres``
    without ``sqlite``, and Linux. Each enforces an equal part of every limit."""
    sqlite: File = Field(default_factory=default_sqlite)
    """The SQLite file; created if it does not exist. A legacy memory.db is imported."""
    postgres: Dsn | None = None
    """Connection string of PostgreSQL, used in place of a SQLite file. With both, the service can
    migrate from the file to PostgreSQL. Missing parts come from the PG* variables. Do not put a
    password on the command line, which other users can see."""
    postgres_pool_min: Count = Field(default=5, ge=0, le=1000)
    """Smallest size of the connection pool of PostgreSQL."""
    postgres_pool_max: Count = Field(default=20, ge=2, le=1000)
    """Largest size of the connection pool of PostgreSQL."""
    postgres_writers: Count = Field(default=2, ge=1, le=64)
    """Concurrent write transactions on PostgreSQL, of each of the ``workers``."""
    postgres_acquire_timeout: Seconds = Field(default=5.0, gt=0, le=3600)
    """Time limit for acquiring a connection, in seconds."""
    postgres_statement_timeout: Seconds = Field(default=15.0, gt=0, le=3600)
    """Time limit of a statement, in seconds."""
    postgres_statement_cache: Count = Field(default=100, ge=0, le=100_000)
    """Prepared statements per connection; use 0 behind PgBouncer in transaction mode."""
    postgres_require_sync: bool = False
    """Refuse writes unless a synchronous or quorum standby of PostgreSQL receives them. The role
    needs ``pg_read_all_stats``."""
    postgres_replicas: Replicas = ()
    """Connection strings of standbys that answer reads: one for each, with one host, in a list
    (file) or separated by commas. A client chooses by ``Consistency``. The role needs
    ``pg_read_all_stats``."""
    postgres_replica_wait: Seconds = Field(default=0.05, ge=0, le=60)
    """Time that a read waits for a standby to reach its position, before the primary answers it,
    in seconds."""
    postgres_replica_max_lag: Seconds = Field(default=10.0, ge=1, le=86_400)
    """Age of the state of a standby above which it answers no reads, in seconds."""
    postgres_patience: Seconds = Field(default=1.5, ge=0.2, le=60)
    """Time without an answer from PostgreSQL, during a migration, after which SQLite answers in
    its place, in seconds."""
    shadow_share: Share = 0.05
    """Share of reads that are compared on both stores during the backfill."""
    forward: bool = False
    """During a migration to ``postgres``, pass every call on to the server with the SQLite file;
    answer calls once PostgreSQL is the only store."""
    forward_to: HostPort | None = None
    """Address of the server with the SQLite file, until PostgreSQL knows it: before dual-write."""
    forward_ca: InputFile | None = None
    """Certificates of the authorities of that server's certificate (PEM). Calls are then passed on
    over TLS. Read at the start."""
    forward_cert: InputFile | None = None
    """Certificate chain with which this server connects to it (PEM), if it asks for one."""
    forward_key: SecretFile | None = None
    """The private key of ``forward_cert`` (PEM, unencrypted)."""
    advertise: HostPort | None = None
    """Address that PostgreSQL names to servers with ``forward``. By default ``listen``, with the
    name of this machine in place of 0.0.0.0 or ::."""
    tls_cert: InputFile | None = None
    """The server's certificate chain (PEM). Enables TLS. Reloaded when it changes."""
    tls_key: SecretFile | None = None
    """The private key of ``tls_cert`` (PEM, unencrypted)."""
    tls_client_ca: InputFile | None = None
    """Certificates of the authorities of client certificates (PEM). Enables mutual TLS."""
    access: InputFile | None = None
    """File with the roles of tokens and client certificates. Reloaded when it changes. Without
    it, every client that can connect has all permissions."""
    audit: Output = AUTO
    """Where the audit trail of changes is written: a file, the log, or nowhere. ``auto`` is ``log``
    if callers are authenticated, otherwise ``off``. Refused callers are always recorded."""
    reflection: bool = True
    """Serve gRPC reflection, which lists the services and messages."""
    max_request_bytes: Bytes = Field(default=32 * MIB, ge=8 * MIB, le=512 * MIB)
    """Largest request in bytes; a message has at most 6 MiB, a batch of 1000 real messages has
    about 0.4 MiB."""
    request_memory: Bytes = Field(default=256 * MIB, ge=64 * MIB, le=64 * 1024 * MIB)
    """Bytes of requests in memory, in all; further requests are rejected with
    RESOURCE_EXHAUSTED."""
    answer_memory: Bytes = Field(default=256 * MIB, ge=64 * MIB, le=64 * 1024 * MIB)
    """Bytes of answers that clients have not read yet, in all; further answers are rejected with
    RESOURCE_EXHAUSTED."""
    request_compression: bool = False
    """Accept compressed requests. A small compressed request can take ``max_request_bytes`` of
    memory. Answers are never compressed."""
    max_calls: Count = Field(default=512, ge=1, le=100_000)
    """Concurrent unary calls; further calls are rejected with RESOURCE_EXHAUSTED."""
    max_streams: Count = Field(default=64, ge=1, le=10_000)
    """Concurrent streams (BulkSave, Export, Verify, WatchMigration)."""
    max_connections: Count = Field(default=1000, ge=1, le=100_000)
    """Concurrent connections; further connections are closed."""
    caller_share: Share = Field(default=0.5, gt=0)
    """Share of the streams, of the memory for requests and answers and of the connections that one
    caller, or one address without access control, may take."""
    caller_rate: Rate = Field(default=0, ge=0, le=1_000_000)
    """Calls and batches per second of one caller; 0 means no limit."""
    search_timeout: Seconds = Field(default=10.0, gt=0, le=3600)
    """Time limit of a search, in seconds."""
    message_timeout: Seconds = Field(default=30.0, ge=1, le=3600)
    """Time limit for the request of a call to arrive, in seconds."""
    stall_timeout: Seconds = Field(default=300.0, ge=1, le=86_400)
    """Time limit for a client to read an answer, and to send the next message of a stream, in
    seconds."""
    connection_age: Seconds = Field(default=3600.0, ge=0, le=604_800)
    """Age at which clients are asked to reconnect, in seconds, ± 10 %; 0 means never."""
    ops_listen: HostPortOrOff = DEFAULT_OPS_LISTEN
    """Address of the HTTP endpoint for metrics, liveness and readiness, or ``off``."""
    ops_allow_insecure: bool = False
    """Accept connections from other machines to ``ops_listen``, which has neither encryption nor
    authentication. ``allow_insecure`` includes it."""
    otlp_endpoint: Url | None = Field(default=None, repr=False)
    """OTLP collector (gRPC) that receives the traces, for example http://127.0.0.1:4317."""
    trace_share: Share = 0.1
    """Share of calls that are traced if the caller sent no trace context."""
    log_level: LogLevel = "info"
    """Lowest level that is logged."""
    log_calls: bool = False
    """Log every call at its end, not only those that fail through a fault of the server."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = list(self._misfits())
        if problems:
            raise relation_error(problems)
        return self

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """Yield each setting that contradicts others, and why."""
        if self.tls_cert and not self.tls_key:
            yield "tls_cert", "needs tls_key, the private key of that certificate"
        if self.tls_key and not self.tls_cert:
            yield "tls_key", "needs tls_cert, the certificate of that key"
        if self.tls_client_ca and not self.tls_cert:
            yield "tls_client_ca", "needs tls_cert and tls_key: client certificates are part of TLS"
        if self.postgres_replicas and not self.postgres:
            yield "postgres_replicas", "needs postgres, the connection string of the primary"
        yield from self._forwarding_misfits()
        if self.postgres_pool_min > self.postgres_pool_max:
            # Names the setting that is not a default.
            which = "min" if "postgres_pool_min" in self.model_fields_set else "max"
            problem = (
                f"postgres_pool_min ({self.postgres_pool_min}) must not be more than "
                f"postgres_pool_max ({self.postgres_pool_max})"
            )
            yield f"postgres_pool_{which}", problem
        yield from worker_share.misfits(self)

    def _forwarding_misfits(self) -> Iterator[tuple[str, str]]:
        if self.forward and self.postgres is None:
            yield "forward", "needs postgres: the database that the migration goes to"
        if (self.forward_cert is None) != (self.forward_key is None):
            name = "forward_cert" if self.forward_cert else "forward_key"
            yield name, "forward_cert and forward_key need each other"
        elif self.forward_cert and not self.forward_ca:
            yield "forward_cert", "needs forward_ca: client certificates are part of TLS"
        for name in ("forward_to", "advertise"):
            address = getattr(self, name)
            if address is not None and Address.parse(address).port == 0:
                yield name, "must name a port"

    @property
    def names_sqlite(self) -> bool:
        """Whether ``sqlite`` is set, as opposed to the default."""
        return "sqlite" in self.model_fields_set

    @property
    def forwarding_conflict(self) -> str:
        """Why a server cannot start with ``forward``; empty if it can, or does not forward."""
        if self.forward and self.names_sqlite:
            return "forward contradicts sqlite: the server with the file answers calls itself"
        return ""

    @property
    def audit_output(self) -> str:
        """``audit`` with ``auto`` replaced: `LOG`, `OFF` or the path of a file."""
        if self.audit != AUTO:
            return self.audit
        authenticates = self.access is not None or self.tls_client_ca is not None
        return LOG if authenticates else OFF

    @property
    def address(self) -> Address:
        """``listen``, parsed."""
        return Address.parse(self.listen)


def load(config: Path | None = None, **given: Any) -> Settings:
    """Load the settings from all sources.

    Args:
        config: A TOML file with settings by name, or None.
        given: Values from the command line; None for an option that was not given.

    Raises:
        SettingsError: The file cannot be read, or a setting is invalid or unknown.

    """
    settings, _, problems = examine(config, given)
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def examine(
    config: Path | None, given: dict[str, Any]
) -> tuple[Settings | None, Layers, list[Problem]]:
    """Load the settings as `load` does, but return the problems instead of raising.

    Returns:
        The settings, or None if a value is invalid; the sources of the values; the problems.

    """
    layers = gather(Settings, config, given)
    settings, problems = validated(Settings, layers)
    return settings, layers, [*layers.problems, *problems]
