"""World: one round of the simulation, from its seed to its verdict.

A round is some virtual seconds in the life of one service: the real router, replicator, backfill,
verifier and controller on models of both stores, with clients, an operator and faults. Then the
faults end, all data is read back, and both stores must be equal.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.files import File, NewFile
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import ExtraValue
from sagastore_server.storage.session_changes import SessionChange
from tests.simulation import second_server
from tests.simulation.clients import Client, client_message, draft, new_value
from tests.simulation.convergence_check import ConvergenceCheck
from tests.simulation.environment import EPOCH, SimulationRandomness
from tests.simulation.events import Recorder
from tests.simulation.faults import Faults
from tests.simulation.invariants import Watcher
from tests.simulation.log_check import Log
from tests.simulation.loop import SimulationLoop, StuckError
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process, ProcessDeadError
from tests.simulation.observed_stores import ObservedDisk, Observer
from tests.simulation.operator import Operator
from tests.simulation.service import Service
from tests.simulation.session_actions import SessionFloors
from tests.simulation.settings import Settings, draw
from tests.support.checker import Checker, WrongAnswerError

Turn = tuple[str, int]
"""Actor and time of an action."""

OFFLOADED_ANALYSIS = 0.2
"""Share of writes whose text is long enough to be analysed in another thread."""

WALK_SECONDS = 120.0
"""Seconds until the service is in the start phase of the round, without faults."""

SET_BACK_SECONDS = 3.0
"""Seconds in which a server detects a set-back of PostgreSQL: a lease renewal and its duration."""


class World:
    """Round. ``run`` it once, then read ``violations`` and ``counts``."""

    def __init__(
        self,
        seed: int,
        profile: str,
        *,
        shuffle: bool,
        recording: bool = False,
        skips: frozenset[Turn] = frozenset(),
        settings: Settings | None = None,
    ) -> None:
        """Prepare the round of a seed.

        ``skips`` are turns to leave out, to shrink a failing round; ``settings`` replaces those
        drawn from the seed.
        """
        self.seed = seed
        self.settings = settings or draw(seed, profile)
        self._skips = skips
        self.turns: set[Turn] = set()
        """Turns that were taken."""
        self.loop = SimulationLoop(str(seed), shuffle=shuffle)
        self.recorder = Recorder(on=recording)
        self.observer: Observer | None = self.note if recording else None
        self.log = Log(self)
        self.network = Random(f"{seed}/network")
        self.randomness = SimulationRandomness(f"{seed}/randomness")
        self.lossy = 0.0
        self.serials = itertools.count(1)
        self.disk = ObservedDisk(Random(f"{seed}/disk"))
        self.disk.observe = self.observer
        self.postgres = PostgresServer(Random(f"{seed}/postgres"), Process("postgres"))
        self.checker = Checker()
        self.sessions = SessionFloors()
        self.files: dict[str, NewFile | None] = {}
        """What each file is that a client has written, as last acknowledged; None: deleted."""
        self.service = Service(self)
        self.second_server: MigratingService | None = None
        self.trip: Callable[[], None] | None = None
        """Injects a fault in the middle of a phase change."""
        self.over = False
        """Whether clients, operator and faults should end."""
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.kill_at_the_end = False
        """Whether to kill the server once PostgreSQL is the only store."""
        self.changes_in_progress = 0
        """Requested changes of phase; a frozen server may execute one later."""
        self.altered = ""
        """Id of a row that was altered directly in PostgreSQL and is not repaired yet."""
        self.was_altered = False
        self.quarantine_keys: frozenset[str] = frozenset()
        """Keys of the rows that are in quarantine from the start."""
        self.removed_at_cutover: set[str] = set()
        """Keys of quarantined rows that PostgreSQL lost during the cutover, possibly after its
        last comparison: the only ones that may be missing later."""
        self.set_back = 0
        """How often PostgreSQL was set back."""
        self._set_back_at = float("-inf")
        self._attachments_then = 0
        self.began = 0.0
        self._watchers: list[Watcher] = []

    # ------------------------------------------------------------------ reported by its parts

    def note(self, actor: str, kind: str, **facts: Any) -> None:
        """Record an event."""
        if self.recorder.on:
            self.recorder.note(self.loop.time(), actor, kind, **facts)

    def violation(self, what: str) -> None:
        """Report a violation and end the round."""
        self.violations.append(f"at {self.loop.time():.4f} s: {what}")
        self.note("checker", "VIOLATION", what=what)
        self.over = True

    def fault(self, name: str, details: str) -> None:
        """Record the start of a fault."""
        live = self.service.live
        phase = live.phase.slug if live is not None and self.service.serving else "down"
        self.counts[f"fault {name} in {phase}"] += 1
        self.note("faults", name, details=details)

    def skips(self, actor: str, turn: int) -> bool:
        """Return whether to leave out an action."""
        if (actor, turn) in self._skips:
            return True
        self.turns.add((actor, turn))
        return False

    def later(self, seconds: float, owner: object, name: str, value: object) -> None:
        """Set an attribute after a while."""
        self.loop.call_later(seconds, setattr, owner, name, value, context=contextvars.Context())

    def watch(self, live: MigratingService) -> None:
        """Assert the invariants on a server's memory from now on."""
        self._watchers = [Watcher(self, live)]

    def acknowledged(self, live: MigratingService) -> None:
        """Check that a server may acknowledge a write at this instant."""
        self.counts["acknowledgements checked"] += 1
        record = self.postgres.record
        other = record is not None and record.holder not in {"", self.disk.holder}
        if live._replicator.session.fenced or (other and live.phase.writes_sqlite):
            self.violation("NoAckAfterTakeOver: a fenced server acknowledged a write")

    def check_durable(self, id: str, revision: int) -> None:
        """Check that PostgreSQL has a write that was acknowledged as durable on both stores."""
        if self.set_back:
            return
        row, tomb = self.postgres.rows.get(id), self.postgres.tombs.get(id, 0)
        if max(row.revision if row else 0, tomb) < revision:
            raise WrongAnswerError(
                f"durable_on is wrong: {id} at {revision}, but PostgreSQL has {row} and {tomb}"
            )

    def check_durable_file(self, id: str, revision: int) -> None:
        """As ``check_durable``, for a file."""
        if self.set_back:
            return
        row, tomb = self.postgres.files.get(id), self.postgres.file_tombs.get(id, 0)
        if max(row.revision if row else 0, tomb) < revision:
            raise WrongAnswerError(
                f"durable_on is wrong: file {id} at {revision}, but PostgreSQL has {row} and {tomb}"
            )

    # ------------------------------------------------------------------ PostgreSQL set back

    def was_set_back(self) -> None:
        """Record that PostgreSQL was set back."""
        self.set_back += 1
        self._set_back_at = self.loop.time()
        live = self.service.live
        self._attachments_then = 0 if live is None else live._replicator.session.attachments

    def recently_set_back(self) -> bool:
        """Return whether the server may not have detected the set-back yet."""
        return self.loop.time() - self._set_back_at < SET_BACK_SECONDS + 30.0

    def set_back_undetected(self, attachments: int) -> bool:
        """Return whether the server has not attached again since PostgreSQL was set back."""
        return self.set_back > 0 and attachments <= self._attachments_then

    # ------------------------------------------------------------------ the round

    def run(self) -> None:
        """Run the round to its verdict."""
        asyncio.set_event_loop(self.loop)
        self.loop.after_step = self._after_step
        with self.log:
            try:
                self.loop.run_until_complete(self.loop.create_task(self._main(), name="round"))
            except StuckError as exc:
                self.violation(f"stuck: {exc}")
            except ProcessDeadError:
                self.violation("the simulation itself used a dead process")
            except Exception as exc:  # noqa: BLE001 - an unexpected error is a finding
                lines = "".join(traceback.format_exception(exc))
                self.violation(f"an unexpected error reached a caller: {lines[-1500:]}")
            finally:
                self.violations += [f"unhandled by asyncio: {line}" for line in self.loop.errors]
                self.log.over = True
                self.loop.end_all()
                asyncio.set_event_loop(None)

    @property
    def cutover_begun(self) -> bool:
        """Whether a cutover is in progress or complete."""
        record = self.postgres.record
        over = record is not None and record.phase is Phase.POSTGRES_ONLY
        return over or self.disk.state.completing

    def _after_step(self) -> None:
        for watcher in self._watchers:
            watcher.look()
        if self.removed_at_cutover and not self.cutover_begun:
            # The next cutover compares again, and must find what is missing.
            self.removed_at_cutover.clear()
        if self.kill_at_the_end:
            record = self.postgres.record
            if record is not None and record.phase is Phase.POSTGRES_ONLY:
                self.kill_at_the_end = False
                self.fault("killed once PostgreSQL is the only store", "")
                self.service.kill(0.1)

    async def _main(self) -> None:
        self._fill_file()
        self.service.start()
        operator = Operator(self)
        walking = asyncio.ensure_future(operator.walk_to(self.settings.begins))
        await asyncio.wait({walking}, timeout=WALK_SECONDS)
        if not walking.done():
            self.violation(f"the start phase {self.settings.begins.slug} was not reached")
            return
        walking.result()
        self.began = self.loop.time()
        self.lossy = self.settings.lossy
        self.disk.slow, self.postgres.lag = self.settings.disk_slow, self.settings.lag
        self.postgres.slow = self.settings.postgres_slow
        self.note("round", "begins", phase=self.settings.begins.slug)
        tasks = self._workers(operator)
        await asyncio.wait(tasks, timeout=self.settings.seconds)
        self.over, self.trip = True, None
        # After a takeover there are two histories, and clients of the first server retry for ever,
        # so the data is not read back.
        if self.second_server is None:
            await ConvergenceCheck(self).run(tasks)
        for task in tasks:
            if task.done():
                task.result()

    def _workers(self, operator: Operator) -> list[asyncio.Task[None]]:
        """Start all actors of a round."""
        clients = [Client(self, number) for number in range(self.settings.clients)]
        acting = [client.run() for client in clients]
        if self.settings.profile == "rival":
            acting.append(self._taken_over())
        else:
            acting += [operator.run(), Faults(self).run()]
            others = range(2, self.settings.operators + 1)
            acting += [Operator(self, f"operator-{number}").run() for number in others]
        return [self.loop.create_task(self._checked(work), name="worker") for work in acting]

    async def _taken_over(self) -> None:
        await second_server.take_over(self)
        self.over = True

    async def _checked(self, work: Any) -> None:
        try:
            await work
        except WrongAnswerError as exc:
            self.violation(str(exc))

    def _fill_file(self) -> None:
        """Store the initial messages and quarantined rows."""
        disk, settings = self.disk, self.settings
        for number in range(settings.old_messages):
            disk.revision += 1
            old = draft(f"old-{number:03d}", new_value(next(self.serials), None))
            order = (EPOCH * 1_000_000, disk.revision, disk.revision)
            message = Message(*old[:8], *order)  # type: ignore[arg-type]
            disk.messages[message.id] = message
            self.checker.known(client_message(message))
            assert message.session_id is not None
            change = SessionChange(message.session_id, disk.sessions.get(message.session_id))
            change.add(message, EPOCH * 1_000_000)
            change.touch(message.revision, EPOCH * 1_000_000)
            disk.sessions[message.session_id] = change.value()
        numbers = range(1, settings.carried + 1)
        disk.quarantine = [
            QuarantinedRow(number, f"messages/rowid={number}", "why", "field", b"{}")
            for number in numbers
        ]
        self.quarantine_keys = frozenset(row.source_key for row in disk.quarantine)
        for number in numbers:
            disk.revision += 1
            key, at = f"old-file-{number}", EPOCH * 1_000_000
            names = (key, "name", "path", "type", "", ())
            disk.files[key] = File(*names, 0, at, "{}", None, disk.revision)
        disk.extras = [ExtraValue(f"old-{number:03d}", "extra", "{}") for number in numbers]
        if settings.restored:
            disk.state = disk.state._replace(restored=disk.revision)
        disk.rows_at_once, disk.busy_readers = settings.rows_at_once, settings.busy_readers
        disk.offloaded_analysis = OFFLOADED_ANALYSIS
        disk.state = disk.state._replace(batch_size=settings.batch_size)
        disk.is_new = not (disk.messages or disk.quarantine)

    @property
    def ended_in(self) -> Phase:
        """Phase on disk."""
        return self.disk.state.phase
