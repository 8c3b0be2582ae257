"""SagaStore on a real Patroni cluster (`make test-patroni`).

Two servers with all hosts in their connection string, and clients of the library with the default
retry policy, while the cluster fails over. A call that fails, an answer that is wrong, and a
revision that is given out twice each fail the test. What the cluster stores at the end is compared
with what was acknowledged.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from sagastore import AsyncClient, RetryPolicy
from tests.patroni.cluster import ROOT, PatroniCluster
from tests.patroni.measure import CountingChecker, Promotion, promotion
from tests.support.checker import Value
from tests.support.postgres import execute
from tests.support.server_process import ServerProcess
from tests.support.traffic import WORDS, Settings, Traffic
from tests.support.traffic_clients import traffic

pytestmark = [pytest.mark.patroni, pytest.mark.timeout(900)]

PROGRAMS = ROOT / ".venv-cluster" / "bin"
CLIENT_TIMEOUT = 10.0
"""Default timeout of the client library in seconds, retries included."""
LONG_TIMEOUT = 60.0
"""For faults that Patroni notices only when the lock of the primary expires, after ttl seconds."""
ROLE = "sagastore_server"


Fault = Callable[[str], object]
"""Acts on the node of this name."""


class Case(NamedTuple):
    """A service on the cluster, with clients."""

    cluster: PatroniCluster
    checker: CountingChecker
    running: Traffic


@pytest.fixture(scope="module")
def cluster() -> Iterator[PatroniCluster]:
    for program in ("etcd", "haproxy"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing; apt-get install etcd-server haproxy")
    # Below /tmp, because the path of a Unix socket is limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="patroni-"))
    folder.chmod(0o755)
    cluster = PatroniCluster(folder, PROGRAMS)
    try:
        cluster.start()
        asyncio.run(_create_role(cluster))
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _create_role(cluster: PatroniCluster) -> None:
    leader = str(cluster.leader())
    await execute(
        cluster.dsn("postgres", "postgres", leader),
        f"CREATE ROLE {ROLE} LOGIN PASSWORD '{cluster.password}';GRANT pg_read_all_stats TO {ROLE}",
    )


@asynccontextmanager
async def service(
    cluster: PatroniCluster,
    folder: Path,
    name: str,
    *options: str,
    limit: float,
    proxied: bool = False,
) -> AsyncIterator[Case]:
    """Run two servers on a new database, with clients; compare the stored messages at the end."""
    await asyncio.to_thread(cluster.until_complete)
    leader = str(cluster.leader())
    await execute(
        cluster.dsn("postgres", "postgres", leader), f"CREATE DATABASE {name} OWNER {ROLE}"
    )
    dsn = cluster.proxy_dsn(ROLE, name) if proxied else cluster.dsn(ROLE, name)
    with ExitStack() as stack:
        file = folder / "unused"
        servers = [ServerProcess(file, *options, postgres=dsn) for _ in range(2)]
        for server in servers:
            stack.callback(server.close)
            await asyncio.to_thread(server.start)
        addresses = ",".join(server.address for server in servers)
        checker = CountingChecker()
        checker.track(WORDS)
        settings = Settings(
            seed=1, writers=4, readers=2, retry=RetryPolicy(), timeout=limit, everywhere=False,
            rest=0.01,
        )  # fmt: skip
        async with traffic(checker, addresses, settings) as running:
            await running.more(300)
            yield Case(cluster, checker, running)
            await running.more(300)
        async with AsyncClient(addresses) as client:
            stored = {message.id: Value.of(message) async for message in client.export()}
        assert stored == checker.settled()


def report(name: str, case: Case, change: Promotion | None) -> None:
    """Write the figures that the documentation has to standard output."""
    recovery = ""
    if change is not None:
        recovery = (
            f"; after the promotion, a standby follows in {change.followed - change.promoted:.2f} s"
            f", a write is acknowledged in {case.checker.first_after(change.promoted):.2f} s"
        )
    calls = case.running.calls.total()
    sys.stdout.write(
        f"\n{name}: {case.running.acknowledged} writes acknowledged, 0 lost, "
        f"{case.running.failed} of {calls} calls failed, {case.checker.revisions} revisions, "
        f"0 repeated, longest gap {case.checker.longest_gap():.2f} s{recovery}\n"
    )


def by_itself(name: str) -> None:
    """Leave it to Patroni, which starts PostgreSQL again as a standby."""


async def fail_over(case: Case, fault: Fault, repair: Fault) -> Promotion:
    """Apply ``fault`` to the primary; return when a standby was promoted."""
    cluster, running = case.cluster, case.running
    old = str(cluster.leader())
    others = [name for name in cluster.nodes if name != old]
    dsns = [cluster.dsn("postgres", "postgres", name) for name in others]
    watching = asyncio.create_task(promotion(*dsns))
    await running.more(100)
    await asyncio.to_thread(fault, old)
    change = await running.during(watching)
    # More than every client can have had in progress, so each has written to the new primary.
    await running.more(300)
    await asyncio.to_thread(repair, old)
    await running.during(asyncio.to_thread(cluster.until_complete))
    return change


async def test_killed_primary(cluster: PatroniCluster, tmp_path: Path) -> None:
    """PostgreSQL dies, Patroni notices: calls with the default timeout succeed."""
    async with service(cluster, tmp_path, "killed", limit=CLIENT_TIMEOUT) as case:
        change = await fail_over(case, cluster.kill_postgres, by_itself)
    report("kill -9 of PostgreSQL on the primary", case, change)


async def test_killed_primary_with_required_standby(
    cluster: PatroniCluster, tmp_path: Path
) -> None:
    """No standby follows the new primary at first: clients repeat what was refused for that."""
    option = "--postgres-require-sync"
    async with service(cluster, tmp_path, "required", option, limit=CLIENT_TIMEOUT) as case:
        change = await fail_over(case, cluster.kill_postgres, by_itself)
    report("kill -9 of PostgreSQL on the primary, postgres_require_sync", case, change)


async def test_switchover(cluster: PatroniCluster, tmp_path: Path) -> None:
    async with service(cluster, tmp_path, "switched", limit=CLIENT_TIMEOUT) as case:
        change = await fail_over(case, cluster.switch_over_from, by_itself)
    report("switchover", case, change)


async def test_killed_node(cluster: PatroniCluster, tmp_path: Path) -> None:
    """PostgreSQL and Patroni die together: the lock expires after ttl seconds."""
    async with service(cluster, tmp_path, "lost", limit=LONG_TIMEOUT) as case:
        change = await fail_over(case, cluster.kill, cluster.start_node)
    report("kill -9 of the whole primary node", case, change)


async def test_frozen_node(cluster: PatroniCluster, tmp_path: Path) -> None:
    """The primary hangs and ends no connection; later it runs again."""
    async with service(cluster, tmp_path, "frozen", limit=LONG_TIMEOUT) as case:
        change = await fail_over(case, cluster.freeze, cluster.thaw)
    report("primary node frozen and thawed", case, change)


async def test_frozen_standby(cluster: PatroniCluster, tmp_path: Path) -> None:
    """Quorum commit needs one of two standbys, so the other one may hang."""
    async with service(cluster, tmp_path, "standby", limit=CLIENT_TIMEOUT) as case:
        for name in cluster.standbys():
            cluster.freeze(name)
            await case.running.more(300)
            cluster.thaw(name)
            await case.running.during(asyncio.to_thread(cluster.until_complete))
    report("each standby frozen and thawed", case, None)


async def test_killed_primary_behind_haproxy(cluster: PatroniCluster, tmp_path: Path) -> None:
    async with service(cluster, tmp_path, "proxied", limit=CLIENT_TIMEOUT, proxied=True) as case:
        change = await fail_over(case, cluster.kill_postgres, by_itself)
    report("kill -9 of PostgreSQL on the primary, behind HAProxy", case, change)
