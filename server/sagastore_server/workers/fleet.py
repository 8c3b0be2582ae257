"""The workers: started, observed, replaced and drained.

Each worker is the work of one supervised task. A worker that ends is a failure of its task, so
the supervisor starts it again after a pause, logs it, counts it, and readiness reports it.

The service ends if a worker reports that it cannot start, or if workers have crashed several times
in a row, and no other worker serves. A replacement that cannot start does not end the others: they
serve, and the cause may be temporary, such as PostgreSQL during a failover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import structlog

from sagastore_server.banner import Serving
from sagastore_server.config.address import Address
from sagastore_server.config.settings import Settings
from sagastore_server.config.worker_share import share_of
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor, TaskError, awaited
from sagastore_server.telemetry.merging import MergedCollector
from sagastore_server.workers.channel import Order
from sagastore_server.workers.worker import Worker, WriteLines, ending

HUNG_AFTER = 20.0
"""Seconds without a sign of a worker's event loop after which it is killed and replaced. Liveness
fails after 10 s (`readiness.LIVE_WITHIN`); Kubernetes restarts a container whose probe fails three
times, which takes 30 s."""

_CRASHES = 3
"""Workers that end in a row without a reason of their own, after which the service ends."""

_MEASURE_SECONDS = 1.0
"""Seconds that a scrape waits for the workers. Of those that are late, it shows older values."""

_MEASURE_ROUNDS = 10
"""Requests for the state of a worker of which one asks for its metrics too: they are what remains
of a worker that is killed. Collecting takes about 10 ms, so this is 0.2 % of a core."""

_CLOSING_SECONDS = 10.0
"""Seconds that a worker has to close its store after the drain."""

_log = structlog.get_logger(__name__)


class Fleet:
    """The workers of the service. Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        address: Address,
        supervisor: Supervisor,
        metrics: MergedCollector,
        write: WriteLines,
    ) -> None:
        """Describe the workers that listen on ``address``; `start` starts them.

        Args:
            settings: Settings of the service.
            address: Address that the supervising process has bound.
            supervisor: Runs the tasks.
            metrics: Receives the metrics of the workers.
            write: Writes lines of the workers to the log.

        """
        self._settings = share_of(settings).model_copy(update={"listen": str(address)})
        self._supervisor = supervisor
        self._metrics = metrics
        self._write = write
        self._tasks: dict[int, SupervisedTask] = {}
        self._stopping = asyncio.Event()
        self._crashes = 0
        self._rounds = 0
        self._changed = asyncio.Event()
        self.workers: tuple[Worker, ...] = ()
        """The processes that run, by number. Safe to read in any thread."""
        self.number = settings.workers
        """How many there shall be."""
        self.restarts = 0
        """Workers that were replaced."""
        self.failure = ""
        """Why the service has to end; one line. Empty while it has not."""
        self.has_served = False
        """Whether all workers have been ready."""

    def start(self) -> None:
        """Start the workers."""
        for number in range(1, self.number + 1):
            self._tasks[number] = self._supervisor.start(
                f"worker-{number}", partial(self._keep, number)
            )

    async def serving(self) -> Serving:
        """Wait until every worker accepts calls; return what they serve."""
        while True:
            found = [worker.serving for worker in self.workers]
            if len(found) == self.number and (first := found[0]) is not None and all(found):
                self.has_served = True
                return first
            await self._change()

    async def failed(self) -> str:
        """Wait until the service has to end; return why."""
        while not self.failure:
            await self._change()
        return self.failure

    def watch(self) -> None:
        """Request the state of each worker, and kill those that hang. Called regularly."""
        self._rounds += 1
        measure = self._rounds % _MEASURE_ROUNDS == 0
        for worker in self.workers:
            if worker.silence > HUNG_AFTER:
                _log.error(
                    "worker hangs", worker=worker.number, pid=worker.pid, seconds=worker.silence
                )
                worker.kill()
            else:
                worker.ask(measure=measure)

    async def measure(self) -> None:
        """Collect and merge the metrics of all workers, within about a second."""
        measuring = [awaited(worker.measure()) for worker in self.workers]
        if measuring:
            _, late = await asyncio.wait(measuring, timeout=_MEASURE_SECONDS)
            for one in late:
                one.cancel()
        self._metrics.update(worker.metrics for worker in self.workers)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Drain all workers together; return when they have ended.

        Args:
            seconds: Time for the calls in progress.
            hurry: Once set, workers end at once.

        """
        self._begin_to_stop(Order.DRAIN)
        ended = awaited(self._all_ended())
        hurried = awaited(hurry.wait())
        limit = seconds + _CLOSING_SECONDS
        await asyncio.wait({ended, hurried}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            await self._stop(ended)

    async def close(self) -> None:
        """End all workers at once."""
        self._begin_to_stop(Order.STOP)
        await self._stop(awaited(self._all_ended()))

    async def _stop(self, ended: asyncio.Task[None]) -> None:
        self._order(self.workers, Order.STOP)
        await asyncio.wait({ended}, timeout=_CLOSING_SECONDS)
        for worker in self.workers:
            _log.error("worker killed: it does not end", worker=worker.number, pid=worker.pid)
            worker.kill()
        await ended

    def _begin_to_stop(self, order: Order) -> None:
        self._stopping.set()
        running = {worker.number for worker in self.workers}
        for number, task in self._tasks.items():
            if number not in running:  # It waits for the next start.
                task.cancel()
        self._order(self.workers, order)

    @staticmethod
    def _order(workers: Iterable[Worker], order: Order) -> None:
        for worker in workers:
            worker.order(order)

    async def _all_ended(self) -> None:
        await asyncio.gather(*(task.wait() for task in self._tasks.values()))

    async def _keep(self, number: int) -> None:
        """Run worker ``number``; start another one when it was asked to end by a signal.

        Raises:
            TaskError: It has ended otherwise.

        """
        while not self._stopping.is_set():
            worker = await Worker.start(number, self._settings, self._on_message)
            self._set_workers([*self.workers, worker])
            _log.info("worker started", worker=number, pid=worker.pid)
            try:
                status = await worker.run(self._write)
            finally:
                self._metrics.retire(worker.metrics)
                self._set_workers([one for one in self.workers if one is not worker])
            if self._stopping.is_set():
                return
            self.restarts += 1
            if status:
                self._judge(worker, status)
                if self.failure:
                    return  # The service ends with that line.
                raise TaskError(worker.failure or f"process {worker.pid} {ending(status)}")

    def _judge(self, worker: Worker, status: int) -> None:
        """Decide whether the service has to end."""
        self._crashes += 1
        if self.has_served and any(one.serving for one in self.workers):
            return
        if worker.failure:
            self.failure = self.failure or worker.failure
        elif self._crashes >= _CRASHES:
            self.failure = self.failure or (
                f"worker processes end at once: the last one {ending(status)}; see the log, then "
                "restart the server"
            )
        self._notify()

    def _on_message(self, worker: Worker) -> None:
        if worker.serving is not None:
            self._crashes = 0
        self._notify()

    def _set_workers(self, workers: list[Worker]) -> None:
        self.workers = tuple(sorted(workers, key=lambda worker: worker.number))
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()
