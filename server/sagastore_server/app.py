"""The composition root: puts a backend behind the server, and runs both.

The only module that names a concrete backend.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog

from sagastore_server import __version__
from sagastore_server.banner import Asked, greeting
from sagastore_server.config.address import Address
from sagastore_server.config.settings import OFF, Settings, default_sqlite
from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.migration.single_store import SingleStore
from sagastore_server.rpc.credentials import server_credentials
from sagastore_server.rpc.limits import Limits
from sagastore_server.rpc.server import METHODS, CannotListenError, RpcServer, ServerOptions
from sagastore_server.runtime.signals import StopSignals
from sagastore_server.runtime.systemd import Notifier
from sagastore_server.security.setup import SecuritySetup, SecuritySetupError
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.phase import Phase
from sagastore_server.telemetry.readiness import Readiness
from sagastore_server.telemetry.setup import Sources, Telemetry, TelemetryError

_PROGRESS_EVERY = 2.0
"""Seconds between two lines about the same long work."""

_WATCH_EVERY = 1.0
"""Seconds between two looks at how the store does."""

_log = structlog.get_logger(__name__)


class StartupError(Exception):
    """The server cannot start as it was told to; the line says why and what to do."""


async def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal asks to stop, then drain.

    The port is bound first, so that probes are answered (NOT_SERVING) while a
    large file is being opened.

    Args:
        settings: What to serve, and where.
        say: Takes what a person at a terminal wants to read.

    Raises:
        StartupError: Something in the settings cannot be had.
        CannotOpenError: The store cannot be opened.

    """
    security_setup = _entrance(settings)
    _check(settings)
    async with Notifier() as manager, _sight(settings) as telemetry:
        service = _service(settings, telemetry.readiness)
        backend = service.backend
        backend.observe(telemetry.instruments.group_committed)
        server = RpcServer(backend, service.control, _terms(settings, security_setup, telemetry))
        signals = StopSignals()
        address = await _listen(server, settings.address)
        telemetry.begin(_subject(server, service, security_setup))
        try:
            async with security_setup.watched():
                if await _open(backend, signals):
                    await server.open_gate()
                    telemetry.opened()
                    await _announce(service, address, _asked(settings), telemetry, say)
                    manager.ready(f"serving {service.place()} on {address}")
                    async with _watched(service, server, telemetry.readiness):
                        await _until_told(signals, server)
                manager.stopping(settings.drain_seconds)
                telemetry.draining(settings.drain_seconds, lambda: server.calls_under_way)
                await _drain(server, settings.drain_seconds, signals)
        finally:
            await telemetry.stop_sampling()
            try:
                await server.stop()
            finally:
                await backend.close()
    _log.info("stopped")


class _StartupProgress:
    """Tells how far long work has come, and logs it every few seconds."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._next = time.monotonic() + _PROGRESS_EVERY

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell it; log it if it is time to."""
        self._readiness.progress(what, done, total)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY
            _log.info("opening", work=what, rows=done, of=total)


def _check(settings: Settings) -> None:
    if settings.postgres is None and settings.sqlite == default_sqlite():
        try:
            settings.sqlite.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StartupError(f"cannot make {settings.sqlite.parent}: {exc.strerror}") from exc


def _entrance(settings: Settings) -> SecuritySetup:
    try:
        return SecuritySetup(settings)
    except SecuritySetupError as exc:
        raise StartupError(str(exc)) from exc


@asynccontextmanager
async def _sight(settings: Settings) -> AsyncIterator[Telemetry]:
    """See what goes on for as long as the context lasts."""
    try:
        telemetry = Telemetry(settings, __version__, METHODS)
    except TelemetryError as exc:
        raise StartupError(str(exc)) from exc
    try:
        yield telemetry
    finally:
        await telemetry.end()


def _subject(server: RpcServer, service: _Service, security_setup: SecuritySetup) -> Sources:
    admission, tls = server.admission, security_setup.tls
    return Sources(
        calls=lambda: admission.calls,
        streams=lambda: admission.streams,
        loads=service.backend.loads,
        control=service.control,
        certificate_ends=None if tls is None else lambda: tls.ends,
    )


def _terms(
    settings: Settings, security_setup: SecuritySetup, telemetry: Telemetry
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
    )
    tls = security_setup.tls
    return ServerOptions(
        limits,
        access=security_setup.access,
        credentials=None if tls is None else server_credentials(tls.material),
        instruments=telemetry.instruments,
        reflection=settings.reflection,
        log_calls=settings.log_calls,
    )


class _Service(NamedTuple):
    """What the settings come to."""

    backend: StorageBackend
    control: MigrationControl
    place: Callable[[], str]
    """Where the messages are, for people; may change with the phase."""
    needs_watching: Callable[[], bool]
    """Whether the store can go away and come back; a file does not."""


def _service(settings: Settings, readiness: Readiness) -> _Service:
    if settings.postgres is None:
        sqlite = SQLiteStorage(settings.sqlite, _StartupProgress(readiness))
        control = SingleStore(sqlite, Phase.SQLITE_ONLY)
        return _Service(sqlite, control, lambda: str(settings.sqlite), lambda: False)
    return _service_with_postgresql(settings, settings.postgres.get_secret_value(), readiness)


def _service_with_postgresql(settings: Settings, dsn: str, readiness: Readiness) -> _Service:
    # A tenth of a second, which a service without PostgreSQL need not wait for.
    from sagastore_server.postgresql.backend import PostgreSQLStorage
    from sagastore_server.postgresql.options import PostgreSQLOptions
    from sagastore_server.postgresql.replica import PostgreSQLReplica

    options = PostgreSQLOptions(
        dsn,
        pool_min=settings.postgres_pool_min,
        pool_max=settings.postgres_pool_max,
        writers=settings.postgres_writers,
        acquire_timeout=settings.postgres_acquire_timeout,
        statement_timeout=settings.postgres_statement_timeout,
        statement_cache=settings.postgres_statement_cache,
    )
    if not settings.names_sqlite:
        postgresql = PostgreSQLStorage(options)
        control = SingleStore(postgresql, Phase.POSTGRES_ONLY)
        return _Service(postgresql, control, lambda: postgresql.place, lambda: True)
    live = MigratingService(
        SQLiteSource(settings.sqlite, _StartupProgress(readiness)),
        PostgreSQLReplica(options),
        Options(settings.shadow_share, settings.postgres_patience),
    )
    return _Service(live.backend, live.control, lambda: live.place, lambda: live.can_go_away)


@asynccontextmanager
async def _watched(
    service: _Service, server: RpcServer, readiness: Readiness
) -> AsyncIterator[None]:
    """Let readiness follow the store for as long as the context lasts."""
    watching = asyncio.create_task(_watch(service, server, readiness))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(service: _Service, server: RpcServer, readiness: Readiness) -> None:
    healthy = True
    while True:
        await asyncio.sleep(_WATCH_EVERY)
        if not service.needs_watching():
            continue  # Counting its rows has its price.
        health = await service.backend.health()
        readiness.store(health)
        if health.healthy != healthy:
            healthy = health.healthy
            await server.set_ready(healthy)
            if healthy:
                _log.info("ready again", store=health.store.value)
            else:
                _log.warning("not ready", store=health.store.value, reason=health.detail)


async def _listen(server: RpcServer, address: Address) -> Address:
    try:
        return address._replace(port=await server.start(str(address)))
    except CannotListenError as exc:
        raise StartupError(
            f"{exc}: it is in use, or no address of this machine; choose another with --listen"
        ) from exc


async def _open(backend: StorageBackend, signals: StopSignals) -> bool:
    """Open the backend; a signal ends that early, and then the answer is False."""
    opening = asyncio.create_task(backend.open())
    stop = asyncio.create_task(signals.first.wait())
    await asyncio.wait({opening, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if opening.done():
        await opening
        return True
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    return False


async def _until_told(signals: StopSignals, server: RpcServer) -> None:
    """Serve until a signal asks to stop.

    Raises:
        StartupError: Nothing is served any more. A process that lives on and does not
            serve is noticed by nobody; one that ends is started anew.

    """
    told = asyncio.create_task(signals.first.wait())
    ended = asyncio.create_task(server.ended())
    await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    ended.cancel()
    if not signals.first.is_set():
        raise StartupError("gRPC has stopped serving by itself, which it must not; start again")


def _asked(settings: Settings) -> Asked:
    return Asked(
        tls=settings.tls_cert is not None,
        certificate=settings.tls_client_ca is not None,
        token=settings.access is not None,
    )


async def _announce(
    service: _Service,
    address: Address,
    asked: Asked,
    telemetry: Telemetry,
    say: Callable[[str], None],
) -> None:
    messages = (await service.backend.health()).messages
    place = service.place()
    quarantined = await _quarantined(service.backend)
    _log.info(
        "serving",
        address=str(address),
        ops=OFF if telemetry.address is None else str(telemetry.address),
        version=__version__,
        store=place,
        messages=messages,
        quarantined=quarantined,
    )
    say(greeting(__version__, address, place, messages, quarantined, asked=asked))


async def _quarantined(backend: StorageBackend) -> int:
    """Return how many rows are in quarantine; 0 if the store fails to answer just now.

    It serves already: what is only announced must not end it.
    """
    try:
        return await backend.quarantine_count()
    except StorageError as exc:
        _log.warning("quarantine not counted", detail=str(exc))
        return 0


async def _drain(server: RpcServer, grace: float, signals: StopSignals) -> None:
    """Let the calls under way finish, until ``grace`` is over or a second signal comes."""
    _log.info("draining", calls=server.calls_under_way, seconds=grace)
    draining = asyncio.create_task(server.drain(grace))
    hurry = asyncio.create_task(signals.second.wait())
    await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    draining.cancel()
    if server.calls_under_way:
        _log.warning("calls cut short", calls=server.calls_under_way)
