"""How things stand at the moment, as metrics: made of what is in memory when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sagastore_server.storage.load import Load
from sagastore_server.storage.migration import BackfillState, StatusSnapshot, Verification
from sagastore_server.storage.phase import Phase
from sagastore_server.telemetry.readiness import Notice, Readiness, Reason
from sagastore_server.telemetry.sampler import Sampler

Number = Callable[[], float]


class AdmissionLoad(NamedTuple):
    """How many calls are inside, and how many may be; each from any thread."""

    calls: Number
    max_calls: float
    streams: Number
    max_streams: float


class StoreCollector(Collector):
    """Tells how things stand; called in the threads of the ops port."""

    def __init__(
        self,
        doorway: AdmissionLoad,
        sampler: Sampler,
        readiness: Readiness,
        certificate_ends: Number | None,
    ) -> None:
        """Tell of these.

        ``certificate_ends``: when the certificate ends, in seconds since 1970; None: no TLS.
        """
        self._doorway = doorway
        self._sampler = sampler
        self._readiness = readiness
        self._certificate_ends = certificate_ends

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        yield from self._server()
        sampler = self._sampler
        yield from _busy(sampler.loads)
        if sampler.snapshot is not None:
            yield from self._stores(sampler.snapshot)
            yield from _migration(sampler.snapshot)
            yield from self._journal()

    def _server(self) -> Iterator[Metric]:
        admission, readiness = self._doorway, self._readiness
        yield _gauge("sagastore_calls_in_flight", "Single calls inside.", admission.calls())
        yield _gauge("sagastore_calls_limit", "How many there may be.", admission.max_calls)
        yield _gauge("sagastore_streams_open", "Streams inside.", admission.streams())
        yield _gauge("sagastore_streams_limit", "How many there may be.", admission.max_streams)
        reasons = {finding.reason for finding in readiness.reasons()}
        warnings = {finding.reason for finding in readiness.warnings()}
        yield _gauge("sagastore_ready", "1: the server serves.", not reasons)
        yield _states(
            "sagastore_not_ready", "1: why it does not.", "reason", _values(Reason), reasons
        )
        yield _states(
            "sagastore_warning",
            "1: what somebody should see to while it serves.",
            "reason",
            _values(Notice),
            warnings,
        )
        yield _gauge(
            "sagastore_event_loop_silence_seconds",
            "Time since the event loop last went round; up to half a second is usual.",
            readiness.silence,
        )
        if self._certificate_ends is not None:
            yield _gauge(
                "sagastore_tls_certificate_end_timestamp_seconds",
                "When the first of the server's certificates ends, in seconds since 1970.",
                self._certificate_ends(),
            )

    def _stores(self, snapshot: StatusSnapshot) -> Iterator[Metric]:
        inventory = self._sampler.inventory
        if inventory is None:
            return
        up = _by_store("sagastore_store_up", "1: the store answers.")
        messages = _by_store("sagastore_messages", "Messages stored; missing while unknown.")
        version = _by_store("sagastore_store_schema_version", "Version of the store's schema.")
        for health in inventory.stores:
            if health.store not in snapshot.phase.stores:
                continue
            name = [health.store.value]
            up.add_metric(name, health.healthy)
            if health.messages >= 0:
                messages.add_metric(name, health.messages)
            if health.schema_version:
                version.add_metric(name, health.schema_version)
        yield from (up, messages, version)
        yield _gauge(
            "sagastore_quarantine_rows",
            "Rows of a legacy file that no message represents faithfully.",
            inventory.quarantined,
        )

    def _journal(self) -> Iterator[Metric]:
        backlog = self._sampler.backlog
        yield _gauge(
            "sagastore_migration_journal_rows",
            "Changes that SQLite has and PostgreSQL has not yet.",
            backlog.rows,
        )
        yield _gauge(
            "sagastore_migration_journal_lag_seconds",
            "Age of the oldest of them.",
            backlog.lag_seconds,
        )


_LOADS: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    (
        "sagastore_writes_waiting",
        "Writes that are in no transaction yet.",
        lambda load: load.writes_waiting,
    ),
    (
        "sagastore_connections_open",
        "Connections to the store: for reading (SQLite), for everything (PostgreSQL).",
        lambda load: load.connections,
    ),
    ("sagastore_connections_busy", "Those lent out.", lambda load: load.connections_busy),
    ("sagastore_connections_limit", "How many there may be.", lambda load: load.connections_most),
    (
        "sagastore_connections_wanted",
        "Reads and transactions that wait for one.",
        lambda load: load.connections_wanted,
    ),
)
_FILES: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    ("sagastore_wal_bytes", "Size of the write-ahead log.", lambda load: load.log_bytes),
    ("sagastore_file_bytes", "Size of the database file.", lambda load: load.file_bytes),
    (
        "sagastore_disk_free_bytes",
        "Room left on the disk of that file.",
        lambda load: load.disk_free_bytes,
    ),
)


def _busy(loads: list[Load]) -> Iterator[Metric]:
    with_file = [load for load in loads if load.file_bytes]
    for table, those in ((_LOADS, loads), (_FILES, with_file)):
        for name, documentation, value in table:
            family = _by_store(name, documentation)
            for load in those:
                family.add_metric([load.store.value], value(load))
            yield family


def _migration(snapshot: StatusSnapshot) -> Iterator[Metric]:
    yield _gauge(
        "sagastore_migration_phase_number",
        "The phase, 1 (sqlite-only) to 5 (postgres-only).",
        snapshot.phase.value,
    )
    phases = [phase.slug for phase in Phase]
    yield _states(
        "sagastore_migration_phase", "1: the phase.", "phase", phases, {snapshot.phase.slug}
    )
    yield _gauge("sagastore_migration_epoch", "Counts the changes of phase.", snapshot.epoch)
    yield _gauge(
        "sagastore_migration_reads_from_fallback",
        "1: in read-postgres, SQLite answers reads because PostgreSQL is down or behind.",
        snapshot.reads_from_fallback,
    )
    yield _gauge(
        "sagastore_migration_following",
        "1: nothing keeps PostgreSQL from following SQLite.",
        snapshot.phase.journals and snapshot.trouble is None and not snapshot.taken_over,
    )
    yield from _backfill(snapshot)
    yield from _comparisons(snapshot)


def _backfill(snapshot: StatusSnapshot) -> Iterator[Metric]:
    backfill = snapshot.backfill
    states = [state.value for state in BackfillState]
    yield _states(
        "sagastore_migration_backfill_state",
        "1: what the backfill is doing.",
        "state",
        states,
        {backfill.state.value},
    )
    yield _gauge(
        "sagastore_migration_backfill_copied_messages",
        "Messages that the backfill has copied.",
        backfill.copied,
    )
    yield _gauge(
        "sagastore_migration_backfill_all_messages",
        "Messages that it has to copy in all.",
        backfill.total,
    )
    yield _gauge(
        "sagastore_migration_backfill_messages_per_second",
        "How fast it copies.",
        backfill.rows_per_second,
    )


def _comparisons(snapshot: StatusSnapshot) -> Iterator[Metric]:
    shadow = snapshot.shadow
    for name, documentation, value in (
        ("compared", "Reads compared on both stores since the backfill.", shadow.compared),
        ("skipped", "Reads that were to be compared, and could not.", shadow.skipped),
        ("different", "Reads that were answered differently.", shadow.different),
    ):
        yield _gauge(f"sagastore_migration_shadow_reads_{name}", documentation, value)
    last = snapshot.last_verification
    if last is not None:
        yield from _verification(last)


def _verification(last: Verification) -> Iterator[Metric]:
    prefix = "sagastore_migration_verification"
    yield _gauge(
        f"{prefix}_end_timestamp_seconds",
        "When the last verification ended, in seconds since 1970; missing before there is one.",
        last.finished_at / 1_000_000,
    )
    yield _gauge(f"{prefix}_compared_rows", "Rows that it compared.", last.compared)
    yield _gauge(f"{prefix}_mismatched_rows", "Rows that differed.", last.mismatch_count)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _by_store(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=["store"])


def _states(
    name: str, documentation: str, label: str, values: Iterable[str], active: set[str]
) -> Metric:
    """Return a metric with one series for each of ``values``: 1 for the active, 0 otherwise."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value in values:
        family.add_metric([value], value in active)
    return family


def _values(kind: type[Reason] | type[Notice]) -> list[str]:
    return [member.value for member in kind]
