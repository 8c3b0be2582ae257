"""Gauges of the current state, collected at each scrape from values in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sagastore_server.interfaces.backups import BackupRecord
from sagastore_server.interfaces.forwarding import ForwardingCounts, ForwardingState
from sagastore_server.interfaces.usage import Usage
from sagastore_server.storage.load import Load, ReplicaLoad
from sagastore_server.storage.migration import BackfillState, StatusSnapshot, Verification
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from sagastore_server.telemetry.readiness import Finding, Notice, Readiness, Reason
from sagastore_server.telemetry.sampler import Sampler

Number = Callable[[], float]


class AdmissionLoad(NamedTuple):
    """Calls and streams in progress, and their limits. Safe in any thread."""

    calls: Number
    max_calls: float
    streams: Number
    max_streams: float
    usage: Callable[[], Sequence[Usage]] = tuple
    """Usage of other limited resources."""


class AuditCollector(Collector):
    """Collects the number of lost audit lines. Runs in the threads of the ops server."""

    def __init__(self, lost: Number) -> None:
        """Collect from ``lost``."""
        self._lost = lost

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        yield CounterMetricFamily(
            "sagastore_audit_lines_lost",
            "Audit lines that could not be written.",
            value=self._lost(),
        )


class ForwardingCollector(Collector):
    """Collects what a forwarder does. Runs in the threads of the ops server."""

    def __init__(
        self,
        state: Callable[[], ForwardingState | None],
        counts: Callable[[], ForwardingCounts],
    ) -> None:
        """Collect from these."""
        self._state = state
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield _gauge(
            "sagastore_forwarding",
            "1 while calls are forwarded to the server with the SQLite file.",
            self._state() is not None,
        )
        counts = self._counts()
        yield CounterMetricFamily(
            "sagastore_forwarded_calls",
            "Calls that the server with the SQLite file has ended.",
            value=counts.forwarded,
        )
        failures = CounterMetricFamily(
            "sagastore_forwarding_failures",
            "Calls that were not sent, or whose connection to that server was lost.",
            labels=["reason"],
        )
        failures.add_metric(["HOLDER_UNREACHABLE"], counts.unreachable)
        failures.add_metric(["HOLDER_LOST"], counts.lost)
        yield failures


class BackupCollector(Collector):
    """Collects the outcome of the last backups. Runs in the threads of the ops server.

    The backup command is another process; each scrape reads its record, a small file.
    """

    def __init__(
        self, read: Callable[[], BackupRecord | None], is_file: Callable[[], bool]
    ) -> None:
        """Collect from ``read`` while ``is_file`` says that the messages are in a file."""
        self._read = read
        self._is_file = is_file

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; those without a value are absent."""
        record = self._read() if self._is_file() else None
        if record is None:
            return
        prefix = "sagastore_backup"
        if record.failed_at:
            yield _gauge(
                f"{prefix}_last_failure_timestamp_seconds",
                "Last scheduled backup that failed, in seconds since 1970.",
                record.failed_at,
            )
        if record.interval:
            yield _gauge(
                f"{prefix}_interval_seconds",
                "Time between scheduled backups.",
                record.interval,
            )
        if record.succeeded_at:
            yield _gauge(
                f"{prefix}_last_success_timestamp_seconds",
                "Last backup that was verified, in seconds since 1970.",
                record.succeeded_at,
            )
            yield _gauge(f"{prefix}_size_bytes", "Size of that backup.", record.size)
            yield _gauge(
                f"{prefix}_duration_seconds",
                "Duration of that backup, with its verification.",
                record.seconds,
            )


class ReadinessSource(Protocol):
    """What `ReadinessCollector` reads. Safe in any thread."""

    def reasons(self) -> list[Finding]:
        """Return why the server is not ready."""

    def warnings(self) -> list[Finding]:
        """Return the problems that leave the server ready."""


class ReadinessCollector(Collector):
    """Collects readiness, its reasons and the warnings. Runs in the threads of the ops server."""

    def __init__(self, readiness: ReadinessSource) -> None:
        """Collect from ``readiness``."""
        self._readiness = readiness

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        reasons = {finding.reason for finding in self._readiness.reasons()}
        warnings = {finding.reason for finding in self._readiness.warnings()}
        yield _gauge("sagastore_ready", "1 if the server is ready.", not reasons)
        yield _states(
            "sagastore_not_ready",
            "1 if the server is not ready for this reason.",
            "reason",
            _values(Reason),
            reasons,
        )
        yield _states(
            "sagastore_warning",
            "1 if this warning is active.",
            "reason",
            _values(Notice),
            warnings,
        )


class StoreCollector(Collector):
    """Collects the gauges. Runs in the threads of the ops server."""

    def __init__(
        self,
        admission: AdmissionLoad,
        sampler: Sampler,
        readiness: Readiness,
        certificate_ends: Number | None,
    ) -> None:
        """Collect from these.

        ``certificate_ends`` is the expiry of the certificate in seconds since 1970, None without
        TLS.
        """
        self._admission = admission
        self._sampler = sampler
        self._readiness = readiness
        self._certificate_ends = certificate_ends

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self._server()
        sampler = self._sampler
        yield from _loads(sampler.loads)
        if sampler.snapshot is not None:
            yield from self._stores(sampler.snapshot)
            yield from _migration(sampler.snapshot)
            yield from self._journal()

    def _server(self) -> Iterator[Metric]:
        admission, readiness = self._admission, self._readiness
        yield _gauge("sagastore_calls_in_flight", "Unary calls in progress.", admission.calls())
        yield _gauge(
            "sagastore_calls_limit", "Limit of sagastore_calls_in_flight.", admission.max_calls
        )
        yield _gauge("sagastore_streams_open", "Open streams.", admission.streams())
        yield _gauge(
            "sagastore_streams_limit", "Limit of sagastore_streams_open.", admission.max_streams
        )
        for usage in admission.usage():
            yield _gauge(f"sagastore_{usage.name}", f"{usage.what.capitalize()}.", usage.used)
            yield _gauge(
                f"sagastore_{usage.name}_limit", f"Limit of sagastore_{usage.name}.", usage.limit
            )
        yield _gauge(
            "sagastore_event_loop_silence_seconds",
            "Time since the last heartbeat of the event loop; up to 0.5 s is normal.",
            readiness.silence,
        )
        if self._certificate_ends is not None:
            yield _gauge(
                "sagastore_tls_certificate_end_timestamp_seconds",
                "Earliest expiry in the server's certificate chain, in seconds since 1970.",
                self._certificate_ends(),
            )

    def _stores(self, snapshot: StatusSnapshot) -> Iterator[Metric]:
        inventory = self._sampler.inventory
        if inventory is None:
            return
        up = _by_store("sagastore_store_up", "1 if the store answers.")
        messages = _by_store("sagastore_messages", "Messages stored; absent while unknown.")
        version = _by_store("sagastore_store_schema_version", "Schema version of the store.")
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
            "Rows of a legacy file that no message can represent without loss.",
            inventory.quarantined,
        )

    def _journal(self) -> Iterator[Metric]:
        backlog = self._sampler.backlog
        yield _gauge(
            "sagastore_migration_journal_rows",
            "Journal entries that are not yet applied to PostgreSQL.",
            backlog.rows,
        )
        yield _gauge(
            "sagastore_migration_journal_lag_seconds",
            "Age of the oldest journal entry.",
            backlog.lag_seconds,
        )


_LOADS: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    (
        "sagastore_writes_waiting",
        "Writes that wait for a transaction.",
        lambda load: load.writes_waiting,
    ),
    (
        "sagastore_connections_open",
        "Open connections to the store; of SQLite those for reading.",
        lambda load: load.connections,
    ),
    ("sagastore_connections_busy", "Connections in use.", lambda load: load.connections_busy),
    (
        "sagastore_connections_limit",
        "Limit of sagastore_connections_open.",
        lambda load: load.connections_most,
    ),
    (
        "sagastore_connections_wanted",
        "Reads and transactions that wait for a connection.",
        lambda load: load.connections_wanted,
    ),
)
_REANALYSIS: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    (
        "sagastore_search_reanalysis_messages",
        "Messages that the reanalysis for search has gone through; 0 if none is in progress.",
        lambda load: load.reanalysis.done if load.reanalysis else 0,
    ),
    (
        "sagastore_search_reanalysis_all_messages",
        "Messages that the reanalysis for search goes through; 0 if none is in progress.",
        lambda load: load.reanalysis.total if load.reanalysis else 0,
    ),
)
_REPLICAS: tuple[tuple[str, str, Callable[[ReplicaLoad], float]], ...] = (
    (
        "sagastore_replica_in_rotation",
        "1 if the replica of PostgreSQL answers reads.",
        lambda replica: not replica.out,
    ),
    (
        "sagastore_replica_lag_seconds",
        "Age of the state of the replica; 0 if it has everything.",
        lambda replica: replica.lag_seconds,
    ),
    (
        "sagastore_replica_lag_bytes",
        "Bytes of the write-ahead log that the replica has not replayed.",
        lambda replica: replica.lag_bytes,
    ),
    (
        "sagastore_replica_timeline",
        "Timeline of the replica; 0 while unknown.",
        lambda replica: replica.timeline,
    ),
    (
        "sagastore_replica_connections_open",
        "Open connections to the replica.",
        lambda replica: replica.connections,
    ),
    (
        "sagastore_replica_connections_busy",
        "Connections in use.",
        lambda replica: replica.connections_busy,
    ),
    (
        "sagastore_replica_connections_limit",
        "Limit of sagastore_replica_connections_open.",
        lambda replica: replica.connections_most,
    ),
)
_FILES: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    ("sagastore_wal_bytes", "Size of the write-ahead log.", lambda load: load.log_bytes),
    ("sagastore_file_bytes", "Size of the database file.", lambda load: load.file_bytes),
    (
        "sagastore_disk_free_bytes",
        "Free space on the disk of the database file.",
        lambda load: load.disk_free_bytes,
    ),
)


def _loads(loads: list[Load]) -> Iterator[Metric]:
    with_file = [load for load in loads if load.file_bytes]
    for table, selected in ((_LOADS, loads), (_REANALYSIS, loads), (_FILES, with_file)):
        for name, documentation, value in table:
            family = _by_store(name, documentation)
            for load in selected:
                family.add_metric([load.store.value], value(load))
            yield family
    for load in loads:
        if load.store is Store.POSTGRESQL:
            yield from _commits(load)
            if load.replicas:
                yield from _replicas(load.replicas)


def _replicas(replicas: Sequence[ReplicaLoad]) -> Iterator[Metric]:
    for name, documentation, value in _REPLICAS:
        family = GaugeMetricFamily(name, documentation, labels=["replica"])
        for replica in replicas:
            family.add_metric([str(replica.number)], value(replica))
        yield family


def _commits(load: Load) -> Iterator[Metric]:
    yield _gauge(
        "sagastore_commit_running_seconds",
        "Time that the oldest commit in progress on PostgreSQL has taken so far.",
        load.commit_seconds,
    )
    yield CounterMetricFamily(
        "sagastore_commits_unconfirmed",
        "Commits on PostgreSQL whose wait for a standby was cancelled. They were not acknowledged.",
        value=load.commits_unconfirmed,
    )


def _migration(snapshot: StatusSnapshot) -> Iterator[Metric]:
    yield _gauge(
        "sagastore_migration_phase_number",
        "Migration phase, 1 (sqlite-only) to 5 (postgres-only).",
        snapshot.phase.value,
    )
    phases = [phase.slug for phase in Phase]
    yield _states(
        "sagastore_migration_phase",
        "1 for the current phase.",
        "phase",
        phases,
        {snapshot.phase.slug},
    )
    yield _gauge("sagastore_migration_epoch", "Number of phase changes.", snapshot.epoch)
    yield _gauge(
        "sagastore_migration_reads_from_fallback",
        "1 if SQLite answers reads in read-postgres because PostgreSQL is down or behind.",
        snapshot.reads_from_fallback,
    )
    yield _gauge(
        "sagastore_migration_following",
        "1 if replication to PostgreSQL works.",
        snapshot.phase.journals and snapshot.trouble is None and not snapshot.taken_over,
    )
    yield from _backfill(snapshot)
    yield from _comparisons(snapshot)


def _backfill(snapshot: StatusSnapshot) -> Iterator[Metric]:
    backfill = snapshot.backfill
    states = [state.value for state in BackfillState]
    yield _states(
        "sagastore_migration_backfill_state",
        "1 for the current state of the backfill.",
        "state",
        states,
        {backfill.state.value},
    )
    yield _gauge(
        "sagastore_migration_backfill_copied_messages",
        "Messages copied by the backfill.",
        backfill.copied,
    )
    yield _gauge(
        "sagastore_migration_backfill_all_messages",
        "Messages that the backfill copies in total.",
        backfill.total,
    )
    yield _gauge(
        "sagastore_migration_backfill_messages_per_second",
        "Copy rate of the backfill.",
        backfill.rows_per_second,
    )


def _comparisons(snapshot: StatusSnapshot) -> Iterator[Metric]:
    shadow = snapshot.shadow
    for name, documentation, value in (
        (
            "compared",
            "Reads compared on both stores since the start of the backfill.",
            shadow.compared,
        ),
        ("skipped", "Sampled reads that could not be compared.", shadow.skipped),
        ("different", "Reads that the stores answered differently.", shadow.different),
    ):
        yield _gauge(f"sagastore_migration_shadow_reads_{name}", documentation, value)
    last = snapshot.last_verification
    if last is not None:
        yield from _verification(last)


def _verification(last: Verification) -> Iterator[Metric]:
    prefix = "sagastore_migration_verification"
    yield _gauge(
        f"{prefix}_end_timestamp_seconds",
        "End of the last verification, in seconds since 1970; absent before the first.",
        last.finished_at / 1_000_000,
    )
    yield _gauge(
        f"{prefix}_compared_rows", "Rows that the last verification compared.", last.compared
    )
    yield _gauge(
        f"{prefix}_mismatched_rows",
        "Rows that differed in the last verification.",
        last.mismatch_count,
    )


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _by_store(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=["store"])


def _states(
    name: str, documentation: str, label: str, values: Iterable[str], active: set[str]
) -> Metric:
    """Return a metric with one series for each of ``values``: 1 if active, 0 otherwise."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value in values:
        family.add_metric([value], value in active)
    return family


def _values(kind: type[Reason] | type[Notice]) -> list[str]:
    return [member.value for member in kind]
