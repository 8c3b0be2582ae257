"""Settings: the command line before the environment before a TOML file before defaults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    OFF,
    Bytes,
    Count,
    Dsn,
    File,
    HostPort,
    HostPortOrOff,
    InputFile,
    Kind,
    Rate,
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
    """Return where messages are kept if nothing else is said: the user's data directory."""
    return platformdirs.user_data_path("sagastore", appauthor=False) / "sagastore.db"


class Settings(BaseSettings):
    """What the server is started with. Every field is also ``SAGASTORE_<FIELD>``.

    Each field is an option of ``serve`` and a row of docs/reference/configuration.md; both take
    its docstring. ``GROUPS`` in ``settings_reference`` says where a group of them begins.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    listen: HostPort = DEFAULT_LISTEN
    """Address to listen on; port 0 takes any free port."""
    allow_insecure: bool = False
    """Listen beyond this machine although calls are in plain text, or callers unknown."""
    drain_seconds: Seconds = Field(default=30.0, ge=0, le=3600)
    """How long calls may go on after SIGTERM or Ctrl+C, in seconds."""
    sqlite: File = Field(default_factory=default_sqlite)
    """The SQLite file; made if it is not there. A legacy memory.db is taken over."""
    postgres: Dsn | None = None
    """Connection string of PostgreSQL, in place of a SQLite file; with both, the service can
    move from the file to PostgreSQL. What it leaves out comes from the PG* variables. Others
    can see a command line: a password belongs elsewhere."""
    postgres_pool_min: Count = Field(default=5, ge=0, le=1000)
    """Connections to PostgreSQL that are kept open."""
    postgres_pool_max: Count = Field(default=20, ge=2, le=1000)
    """Connections to PostgreSQL at most."""
    postgres_writers: Count = Field(default=2, ge=1, le=64)
    """How many transactions may write to PostgreSQL at the same time."""
    postgres_acquire_timeout: Seconds = Field(default=5.0, gt=0, le=3600)
    """How long to wait for a connection, in seconds."""
    postgres_statement_timeout: Seconds = Field(default=15.0, gt=0, le=3600)
    """How long one statement may take, in seconds."""
    postgres_statement_cache: Count = Field(default=100, ge=0, le=100_000)
    """Prepared statements a connection keeps; 0 behind PgBouncer in transaction mode."""
    postgres_patience: Seconds = Field(default=1.5, ge=0.2, le=60)
    """Seconds that PostgreSQL may be silent, while both stores are kept, before SQLite
    answers in its place."""
    shadow_share: Share = 0.05
    """Share of the reads that are compared on both stores during the backfill."""
    tls_cert: InputFile | None = None
    """The server's certificate and those that link it to its authority (PEM), which turns
    TLS on; read again when it changes."""
    tls_key: SecretFile | None = None
    """The private key of ``tls_cert`` (PEM, without a passphrase)."""
    tls_client_ca: InputFile | None = None
    """Certificates of the authorities whose clients may connect (PEM): mutual TLS."""
    access: InputFile | None = None
    """File that says which tokens and client certificates may do what; read again when it
    changes. Without it, whoever can connect may do everything."""
    reflection: bool = True
    """Tell callers which services and messages there are (gRPC reflection)."""
    max_request_bytes: Bytes = Field(default=32 * MIB, ge=2 * MIB, le=512 * MIB)
    """The largest request in bytes; a batch of 1000 real messages takes about 0.4 MiB."""
    max_calls: Count = Field(default=512, ge=1, le=100_000)
    """Calls that are worked on at a time; more are refused with RESOURCE_EXHAUSTED."""
    max_streams: Count = Field(default=64, ge=1, le=10_000)
    """Streams (BulkSave, Export, Verify, WatchMigration) that are open at a time."""
    max_connections: Count = Field(default=1000, ge=1, le=100_000)
    """Connections at a time; more are closed as they come."""
    caller_rate: Rate = Field(default=0, ge=0, le=1_000_000)
    """Calls and batches a second that one caller may make; 0 means any number."""
    search_timeout: Seconds = Field(default=10.0, gt=0, le=3600)
    """How long one search may take, in seconds."""
    stall_timeout: Seconds = Field(default=300.0, ge=1, le=86_400)
    """How long a client may leave an answer of a stream unread, in seconds."""
    connection_age: Seconds = Field(default=3600.0, ge=0, le=604_800)
    """Seconds after which clients are asked to connect anew, give or take a tenth; 0: never."""
    ops_listen: HostPortOrOff = DEFAULT_OPS_LISTEN
    """Address of metrics, liveness and readiness (HTTP), or ``off``."""
    otlp_endpoint: Url | None = None
    """Where traces go: an OTLP collector (gRPC), like http://127.0.0.1:4317."""
    trace_share: Share = 0.1
    """Share of the calls that are traced where the caller has not decided."""
    log_level: LogLevel = "info"
    """The least severe messages that are logged."""
    log_calls: bool = False
    """Log every call as it ends, not only those that fail by a fault of ours."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = list(self._misfits())
        if problems:
            raise relation_error(problems)
        return self

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """Yield each setting that does not go with the others, and why."""
        if self.tls_cert and not self.tls_key:
            yield "tls_cert", "needs tls_key, the private key of that certificate"
        if self.tls_key and not self.tls_cert:
            yield "tls_key", "needs tls_cert, the certificate of that key"
        if self.tls_client_ca and not self.tls_cert:
            yield "tls_client_ca", "needs tls_cert and tls_key: without TLS nobody shows one"
        if self.postgres_pool_min > self.postgres_pool_max:
            # Told of the one that somebody has set.
            named = "min" if "postgres_pool_min" in self.model_fields_set else "max"
            told = (
                f"postgres_pool_min ({self.postgres_pool_min}) must not be more than "
                f"postgres_pool_max ({self.postgres_pool_max})"
            )
            yield f"postgres_pool_{named}", told

    @property
    def names_sqlite(self) -> bool:
        """Whether a SQLite file was asked for, as opposed to the default."""
        return "sqlite" in self.model_fields_set

    @property
    def address(self) -> Address:
        """``listen``, in parts."""
        return Address.parse(self.listen)


def load(config: Path | None = None, **given: Any) -> Settings:
    """Put the settings together.

    Args:
        config: A TOML file with settings by their names, if there is one.
        given: What the command line says; None where it says nothing.

    Raises:
        SettingsError: The file cannot be read, or a setting is wrong or unknown.

    """
    settings, _, problems = examine(config, given)
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def examine(
    config: Path | None, given: dict[str, Any]
) -> tuple[Settings | None, Layers, list[Problem]]:
    """Put the settings together as ``load`` does, but collect every problem.

    Returns:
        The settings, unless there is a problem with a value; where each was found; and the
        problems.

    """
    layers = gather(Settings, config, given)
    settings, problems = validated(Settings, layers)
    return settings, layers, [*layers.problems, *problems]
