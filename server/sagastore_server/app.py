"""Composition root: creates the components of the server, connects them, and runs them.

The only module that names concrete backends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from sagastore_server import __version__
from sagastore_server.banner import Serving, announce
from sagastore_server.config.address import Address
from sagastore_server.config.secrets import secrets_of
from sagastore_server.config.settings import OFF, Settings, default_sqlite
from sagastore_server.config.types import LOG
from sagastore_server.forwarder import Forwarder
from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.migration.single_store import SingleStore
from sagastore_server.rpc.admission import Limits
from sagastore_server.rpc.forwarding import Forwarding, ForwardingOptions
from sagastore_server.rpc.server import METHODS, CannotListenError, RpcServer, ServerOptions
from sagastore_server.runtime.file_rights import refuse_other_users
from sagastore_server.runtime.private_files import make_folder
from sagastore_server.runtime.signals import StopSignals
from sagastore_server.runtime.supervisor import Failure, Supervisor, awaited
from sagastore_server.runtime.systemd import Notifier
from sagastore_server.security.setup import SecuritySetup, SecuritySetupError
from sagastore_server.serving import Advertised, Service, Startup
from sagastore_server.sqlite.archived_store_guard import store_id_of
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup.record import read_record
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.phase import Phase
from sagastore_server.telemetry.audit import AuditTrail
from sagastore_server.telemetry.audit_writer import (
    AuditFileError,
    FileDestination,
    StreamDestination,
)
from sagastore_server.telemetry.log_text import literals
from sagastore_server.telemetry.readiness import not_forwarding
from sagastore_server.telemetry.setup import Publish, Sources, Telemetry, TelemetryError
from sagastore_server.telemetry.startup_progress import StartupProgress

_log = structlog.get_logger(__name__)


class ServerError(Exception):
    """The server cannot start, or has to end. The text is one line: what is wrong, what to do."""


class StartupError(ServerError):
    """The server cannot start with these settings."""


class Process(NamedTuple):
    """How this process runs; by default it is the whole server."""

    signals: Callable[[], StopSignals] = StopSignals
    """Installs what asks this process to stop."""
    publish: Publish | None = None
    """Receives metrics and readiness in place of an ops port."""
    announce: Callable[[Serving], None] | None = None
    """Receives the state once calls are accepted, in place of the log and the banner."""
    shares_port: bool = False
    """Whether other processes of this service listen on the same port."""


async def serve(
    settings: Settings,
    say: Callable[[str], None],
    process: Process = Process(),  # noqa: B008 - immutable
) -> None:
    """Serve until a stop signal arrives, then drain.

    The port is bound before the store is opened, so that health checks are answered
    (NOT_SERVING) while a large file is being opened. A shared port is bound after that, because
    meanwhile another process answers on it.

    Args:
        settings: Settings of the server.
        say: Prints the banner.
        process: How this process runs.

    Raises:
        ServerError: The server cannot start, or a background task that it needs has failed.
        CannotOpenError: The store cannot be opened.

    """
    security = _security(settings)
    _create_default_folder(settings)
    async with (
        _telemetry(settings, process.publish) as telemetry,
        _audit_trail(settings, telemetry) as audit,
        _supervisor(telemetry) as supervisor,
        _fatal_failure(supervisor) as fatal,
        Notifier(supervisor=supervisor) as systemd,
    ):
        advertised = Advertised(settings)
        server, service = _components(
            settings,
            security,
            telemetry,
            supervisor,
            audit=audit,
            advertised=advertised,
            process=process,
        )
        signals = process.signals()
        listen = partial(_listen, server, settings.address)
        if not process.shares_port:
            advertised.address = await listen()
        sources = _sources(settings, server, service, security)
        telemetry.begin(sources._replace(audit_lost=lambda: audit.lost), supervisor)
        try:
            async with security.watched(supervisor):
                startup = Startup(
                    settings,
                    server,
                    service,
                    telemetry,
                    supervisor,
                    systemd,
                    advertised.address,
                    process.announce or partial(announce, settings=settings, say=say),
                    say,
                    listen if process.shares_port else None,
                )
                try:
                    if await _unless_stopped(startup.start(), signals, fatal):
                        await _until_stopped(signals, server, fatal)
                finally:
                    await startup.stop()
                systemd.stopping(settings.drain_seconds)
                telemetry.draining(settings.drain_seconds, lambda: server.calls_in_progress)
                await _drain(server, settings.drain_seconds, signals)
        finally:
            await telemetry.stop_sampling()
            try:
                await server.stop()
            finally:
                await service.close()
    _log.info("stopped")


# ---------------------------------------------------------------- composition
# The process has one supervisor, one set of instruments and one tracer. The functions of this
# section pass them to the components; `serve` passes them to what it starts, such as telemetry.


def _components(
    settings: Settings,
    security: SecuritySetup,
    telemetry: Telemetry,
    supervisor: Supervisor,
    *,
    audit: AuditTrail,
    advertised: Callable[[], str],
    process: Process,
) -> tuple[RpcServer, Service]:
    forwarding = None
    if settings.forwarding_conflict:
        raise StartupError(f"{settings.forwarding_conflict}; remove one of them")
    if settings.forward:
        connecting = ForwardingOptions(security.forward_tls, telemetry.tracer)
        forwarding = Forwarding(connecting, supervisor)
    service = _service(
        settings, telemetry, supervisor, forwarding=forwarding, advertised=advertised
    )
    service.backend.observe(telemetry.instruments.group_committed)
    options = _server_options(settings, security, telemetry, supervisor)
    options = options._replace(
        audit=audit,
        forwarding=forwarding,
        store_id=service.store_id,
        shares_port=process.shares_port,
    )
    return RpcServer(service.backend, service.control, options), service


def _service(
    settings: Settings,
    telemetry: Telemetry,
    supervisor: Supervisor,
    *,
    forwarding: Forwarding | None,
    advertised: Callable[[], str],
) -> Service:
    if settings.postgres is None:
        progress = StartupProgress(telemetry.readiness)
        sqlite = SQLiteStorage(settings.sqlite, progress, supervisor, tracer=telemetry.tracer)
        control = SingleStore(sqlite, Phase.SQLITE_ONLY)
        return Service(
            sqlite,
            control,
            lambda: str(settings.sqlite),
            lambda: False,
            cache(partial(store_id_of, settings.sqlite)),
        )
    dsn = settings.postgres.get_secret_value()
    return _service_with_postgresql(
        settings, dsn, telemetry, supervisor, forwarding=forwarding, advertised=advertised
    )


def _service_with_postgresql(
    settings: Settings,
    dsn: str,
    telemetry: Telemetry,
    supervisor: Supervisor,
    *,
    forwarding: Forwarding | None,
    advertised: Callable[[], str],
) -> Service:
    # The import takes a tenth of a second; a server without PostgreSQL does not need it.
    from sagastore_server.postgresql.backend import PostgreSQLStorage
    from sagastore_server.postgresql.holder import HolderReader
    from sagastore_server.postgresql.options import PostgreSQLOptions
    from sagastore_server.postgresql.target import PostgreSQLTarget

    options = PostgreSQLOptions(
        dsn,
        pool_min=settings.postgres_pool_min,
        pool_max=settings.postgres_pool_max,
        writers=settings.postgres_writers,
        acquire_timeout=settings.postgres_acquire_timeout,
        statement_timeout=settings.postgres_statement_timeout,
        statement_cache=settings.postgres_statement_cache,
        require_sync=settings.postgres_require_sync,
        replicas=tuple(one.get_secret_value() for one in settings.postgres_replicas),
        replica_wait=settings.postgres_replica_wait,
        replica_max_lag=settings.postgres_replica_max_lag,
    )
    tracer, instruments = telemetry.tracer, telemetry.instruments
    if not settings.names_sqlite:
        postgresql = PostgreSQLStorage(options, supervisor, tracer=tracer, instruments=instruments)
        control = SingleStore(postgresql, Phase.POSTGRES_ONLY)
        forwarder = None
        if forwarding is not None:
            forwarder = Forwarder(
                HolderReader(options),
                forwarding,
                forward_to=settings.forward_to,
                may_use_plain_text=settings.allow_insecure or settings.forward_ca is not None,
            )
        return Service(
            postgresql,
            control,
            lambda: postgresql.place,
            lambda: True,
            lambda: postgresql.migrated_from,
            forwarder,
        )
    progress = StartupProgress(telemetry.readiness)
    source = SQLiteSource(settings.sqlite, progress, supervisor, tracer=tracer)
    migrating = MigratingService(
        source,
        PostgreSQLTarget(
            options,
            supervisor,
            tracer=tracer,
            instruments=instruments,
            advertised=advertised,
        ),
        Options(settings.shadow_share, settings.postgres_patience),
        supervisor=supervisor,
    )
    return Service(
        migrating.backend,
        migrating.control,
        lambda: migrating.place,
        lambda: migrating.can_go_away,
        lambda: source.store_id,
    )


def _server_options(
    settings: Settings, security: SecuritySetup, telemetry: Telemetry, supervisor: Supervisor
) -> ServerOptions:
    limits = Limits(
        max_request_bytes=settings.max_request_bytes,
        max_calls=settings.max_calls,
        max_streams=settings.max_streams,
        caller_rate=settings.caller_rate,
        search_timeout=settings.search_timeout,
        stall_timeout=settings.stall_timeout,
        connection_age=settings.connection_age,
        max_connections=settings.max_connections,
        request_memory=settings.request_memory,
        answer_memory=settings.answer_memory,
        caller_share=settings.caller_share,
        message_timeout=settings.message_timeout,
        request_compression=settings.request_compression,
    )
    return ServerOptions(
        limits,
        access=security.access,
        tls=None if security.tls is None else security.tls.material,
        certificate_end=security.certificate_end,
        instruments=telemetry.instruments,
        tracer=telemetry.tracer,
        supervisor=supervisor,
        reflection=settings.reflection,
        log_calls=settings.log_calls,
    )


def _security(settings: Settings) -> SecuritySetup:
    try:
        return SecuritySetup(settings)
    except SecuritySetupError as exc:
        raise StartupError(str(exc)) from exc


@asynccontextmanager
async def _telemetry(settings: Settings, publish: Publish | None) -> AsyncIterator[Telemetry]:
    try:
        telemetry = Telemetry(settings, __version__, METHODS, publish)
    except TelemetryError as exc:
        raise StartupError(str(exc)) from exc
    try:
        yield telemetry
    finally:
        await telemetry.end()


@asynccontextmanager
async def _audit_trail(settings: Settings, telemetry: Telemetry) -> AsyncIterator[AuditTrail]:
    """Open the audit trail; lines about refused callers go to the log if it is off."""
    output = settings.audit_output
    to_log = output in {LOG, OFF}
    try:
        destination = (
            StreamDestination(sys.stderr.fileno()) if to_log else FileDestination(Path(output))
        )
    except AuditFileError as exc:
        raise StartupError(str(exc)) from exc
    audit = AuditTrail(
        destination,
        records_changes=output != OFF,
        has_certificates=settings.tls_client_ca is not None,
        secrets=literals(secrets_of(settings)),
        is_terminal=to_log and sys.stderr.isatty(),
    )
    telemetry.readiness.watch_audit(lambda: audit.failure)
    try:
        yield audit
    finally:
        await asyncio.to_thread(audit.close)


@asynccontextmanager
async def _supervisor(telemetry: Telemetry) -> AsyncIterator[Supervisor]:
    """Create the supervisor of the process; readiness reports its failing tasks."""
    supervisor = Supervisor(telemetry.instruments)
    telemetry.readiness.watch_tasks(lambda: supervisor.failing)
    try:
        yield supervisor
    finally:
        await supervisor.close()


# -------------------------------------------------------------------- running


@asynccontextmanager
async def _fatal_failure(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[Failure]]:
    """Provide a task that ends when a background task with the policy FATAL has failed."""
    fatal = awaited(supervisor.fatal(), name="fatal-failure")
    try:
        yield fatal
    finally:
        fatal.cancel()


def _raise_if_fatal(fatal: asyncio.Task[Failure]) -> None:
    if fatal.done():
        failure = fatal.result()
        raise ServerError(
            f"background task {failure.task} failed: {failure.error}; see the log, then restart "
            "the server"
        )


def _create_default_folder(settings: Settings) -> None:
    if settings.postgres is None and settings.sqlite == default_sqlite():
        folder = settings.sqlite.parent
        try:
            refuse_other_users(folder)
            make_folder(folder)
        except OSError as exc:
            raise StartupError(
                f"cannot create {folder}: {exc.strerror}; create it, or choose another file with "
                "--sqlite"
            ) from exc


def _sources(
    settings: Settings, server: RpcServer, service: Service, security: SecuritySetup
) -> Sources:
    admission, tls = server.admission, security.tls
    uses_file = settings.postgres is None or settings.names_sqlite
    return Sources(
        calls=lambda: admission.calls,
        streams=lambda: admission.streams,
        loads=service.backend.loads,
        usage=server.usage,
        control=service.control,
        certificate_ends=None if tls is None else lambda: tls.ends,
        backups=(lambda: read_record(settings.sqlite)) if uses_file else None,
        forwarding=not_forwarding if service.forwarder is None else service.forwarder.state,
        forwarding_counts=server.forwarding_counts,
    )


async def _listen(server: RpcServer, address: Address) -> Address:
    try:
        return address._replace(port=await server.start(str(address)))
    except CannotListenError as exc:
        raise StartupError(
            f"{exc}: it is in use, or no address of this machine; choose another with --listen"
        ) from exc


async def _unless_stopped(
    starting: Coroutine[Any, Any, None], signals: StopSignals, fatal: asyncio.Task[Failure]
) -> bool:
    """Finish ``starting``, and return False if a stop signal arrived first.

    Raises:
        ServerError: A background task with the policy FATAL has failed.

    """
    opening = awaited(starting)
    stop = awaited(signals.first.wait())
    await asyncio.wait({opening, stop, fatal}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if opening.done():
        await opening
        return True
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    _raise_if_fatal(fatal)
    return False


async def _until_stopped(
    signals: StopSignals, server: RpcServer, fatal: asyncio.Task[Failure]
) -> None:
    """Serve until a stop signal arrives.

    Raises:
        ServerError: A background task with the policy FATAL has failed, or gRPC has stopped. The
            process must end then, because a service manager restarts only a process that ends.

    """
    stop = awaited(signals.first.wait())
    termination = awaited(server.wait_for_termination())
    await asyncio.wait({stop, termination, fatal}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    termination.cancel()
    if signals.first.is_set():
        return
    _raise_if_fatal(fatal)
    raise ServerError("gRPC stopped unexpectedly; restart the server")


async def _drain(server: RpcServer, grace: float, signals: StopSignals) -> None:
    """Drain for up to ``grace`` seconds, or until a second stop signal arrives."""
    calls = server.calls_in_progress
    draining = awaited(server.drain(grace))
    await asyncio.sleep(0)  # From here on, calls are refused.
    _log.info("draining", calls=calls, seconds=grace)
    second_signal = awaited(signals.second.wait())
    await asyncio.wait({draining, second_signal}, return_when=asyncio.FIRST_COMPLETED)
    second_signal.cancel()
    draining.cancel()
    if server.calls_in_progress:
        _log.warning("calls cut short", calls=server.calls_in_progress)
