"""Settings: the command line before the environment before a TOML file before defaults."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sagastore_server.ops.address import Address

ENV_PREFIX = "SAGASTORE_"
DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_OPS_LISTEN = "127.0.0.1:9464"
MIB = 1024 * 1024

LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(Exception):
    """The settings cannot be used; the line says which and why, and shows no value."""


def default_sqlite() -> Path:
    """Return where messages are kept if nothing else is said: the user's data directory."""
    return platformdirs.user_data_path("sagastore", appauthor=False) / "sagastore.db"


class Settings(BaseSettings):
    """What the server is started with. Every field is also ``SAGASTORE_<FIELD>``."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    listen: str = DEFAULT_LISTEN
    """Address to listen on; port 0 takes any free port."""
    sqlite: Path = Field(default_factory=default_sqlite)
    """The SQLite file; made if it is not there."""
    postgres: SecretStr | None = None
    """Connection string of PostgreSQL, in place of a SQLite file; with both, the service can
    move from the file to PostgreSQL. What it leaves out comes from the PG* variables."""
    postgres_pool_min: int = Field(default=5, ge=0, le=1000)
    """Connections to PostgreSQL that are kept open."""
    postgres_pool_max: int = Field(default=20, ge=2, le=1000)
    """Connections to PostgreSQL at most."""
    postgres_writers: int = Field(default=2, ge=1, le=64)
    """Transactions that write to PostgreSQL at the same time."""
    postgres_acquire_timeout: float = Field(default=5.0, gt=0, le=3600)
    """How long to wait for a connection, in seconds."""
    postgres_statement_timeout: float = Field(default=15.0, gt=0, le=3600)
    """How long one statement may take, in seconds."""
    postgres_statement_cache: int = Field(default=100, ge=0, le=100_000)
    """Prepared statements a connection keeps; 0 behind PgBouncer in transaction mode."""
    postgres_patience: float = Field(default=1.5, ge=0.2, le=60)
    """Seconds that PostgreSQL may be silent, while both stores are kept, before SQLite
    answers in its place."""
    shadow_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the reads that are compared on both stores during the backfill, from 0 to 1."""
    tls_cert: Path | None = None
    """The server's certificate and those that link it to its authority (PEM), which turns
    TLS on; read again when it changes."""
    tls_key: Path | None = None
    """The private key of ``tls_cert`` (PEM, without a passphrase)."""
    tls_client_ca: Path | None = None
    """Certificates of the authorities whose clients may connect (PEM): mutual TLS."""
    access: Path | None = None
    """File that says which tokens and client certificates may do what; read again when it
    changes. Without it, whoever can connect may do everything."""
    allow_insecure: bool = False
    """Listen beyond this machine although calls are in plain text, or callers unknown."""
    reflection: bool = True
    """Tell callers which services and messages there are (gRPC reflection)."""
    max_request_bytes: int = Field(default=32 * MIB, ge=2 * MIB, le=512 * MIB)
    """The largest request in bytes; a batch of 1000 real messages takes about 0.4 MiB."""
    max_calls: int = Field(default=512, ge=1, le=100_000)
    """Calls that are worked on at a time; more are refused with RESOURCE_EXHAUSTED."""
    max_streams: int = Field(default=64, ge=1, le=10_000)
    """Streams (BulkSave, Export, Verify, WatchMigration) that are open at a time."""
    caller_rate: float = Field(default=0, ge=0, le=1_000_000)
    """Calls and batches a second that one caller may make; 0 means any number."""
    search_timeout: float = Field(default=10.0, gt=0, le=3600)
    """How long one search may take, in seconds."""
    stall_timeout: float = Field(default=300.0, ge=1, le=86_400)
    """How long a client may leave an answer of a stream unread, in seconds."""
    connection_age: float = Field(default=3600.0, ge=0, le=604_800)
    """Seconds after which clients are asked to connect anew, give or take a tenth; 0: never."""
    ops_listen: str = DEFAULT_OPS_LISTEN
    """Address of metrics, liveness and readiness (HTTP), or ``off``."""
    otlp_endpoint: str | None = None
    """Where traces go: an OTLP collector (gRPC), like http://127.0.0.1:4317."""
    trace_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the calls that are traced where the caller has not decided, from 0 to 1."""
    drain_seconds: float = Field(default=30.0, ge=0, le=3600)
    """How long calls may go on after SIGTERM, in seconds."""
    log_level: LogLevel = "info"
    """The least severe messages that are logged."""
    log_calls: bool = False
    """Log every call as it ends, not only those that fail by a fault of ours."""

    @field_validator("listen")
    @classmethod
    def _is_address(cls, text: str) -> str:
        return str(Address.parse(text))

    @field_validator("sqlite")
    @classmethod
    def _at_home(cls, path: Path) -> Path:
        return path.expanduser()

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_lower_case(cls, level: object) -> object:
        return level.lower() if isinstance(level, str) else level

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
    from_file = {} if config is None else _read(config)

    class Sources(Settings):
        """Settings with the file behind the environment."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not a source of ours
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - neither
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        return Sources(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        raise SettingsError(_told(exc)) from exc


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise SettingsError(f"the configuration {path} is not valid TOML: {exc}") from exc
    return {name.replace("-", "_"): value for name, value in values.items()}


def _told(error: ValidationError) -> str:
    """Say in one line what is wrong, without the values: one of them is a secret."""
    problems = (
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_input=False)
    )
    return "bad settings: " + "; ".join(problems)
