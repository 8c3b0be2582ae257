"""Which server a forwarder forwards to, as the record of the migration and its settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagastore_server.forwarder import Forwarder
from sagastore_server.interfaces.forwarding import HolderRecord
from sagastore_server.rpc.forwarding import Forwarding, ForwardingOptions
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.storage.errors import StorageError, UnavailableError
from sagastore_server.storage.phase import Phase

FIRST, SECOND, GIVEN = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
JOURNALLING = [phase for phase in Phase if phase.journals]


class Records:
    """A record that the test sets; None: no migration."""

    def __init__(self) -> None:
        self.record: HolderRecord | None = None
        self.error: StorageError | None = None

    async def read(self) -> HolderRecord | None:
        if self.error is not None:
            raise self.error
        return self.record

    def set(self, phase: Phase, address: str) -> None:
        self.record = HolderRecord(phase, "store", address)

    async def close(self) -> None:
        pass


class Made:
    """A forwarder with its record."""

    def __init__(self, forward_to: str | None, *, may_use_plain_text: bool = False) -> None:
        self.records = Records()
        self.forwarding = Forwarding(ForwardingOptions(), Supervisor())
        self.forwarder = Forwarder(
            self.records,
            self.forwarding,
            forward_to=forward_to,
            may_use_plain_text=may_use_plain_text,
        )

    async def holder(self) -> str:
        """Return the address after the next read."""
        await self.forwarder.look()
        state = self.forwarder.state()
        assert state is not None
        return state.holder

    async def detail(self) -> str:
        """Return why there is no holder."""
        assert await self.holder() == ""
        return self.forwarding.state().detail


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    made = Made(None)
    yield made
    await made.forwarding.stop()


@pytest.fixture
async def given() -> AsyncIterator[Made]:
    made = Made(GIVEN)
    yield made
    await made.forwarding.stop()


async def test_setting_is_used_until_the_database_knows_the_holder(given: Made) -> None:
    assert await given.holder() == GIVEN
    given.records.set(Phase.SQLITE_ONLY, FIRST)
    assert await given.holder() == GIVEN
    for phase in JOURNALLING:
        given.records.set(phase, FIRST)
        assert await given.holder() == FIRST
    given.records.set(Phase.READ_POSTGRES, SECOND)
    assert await given.holder() == SECOND
    given.records.set(Phase.DUAL_WRITE, "")
    assert await given.holder() == GIVEN


async def test_without_the_setting_the_database_must_know_the_holder(made: Made) -> None:
    assert "there is no migration to this database yet; set forward_to" in await made.detail()
    made.records.set(Phase.DUAL_WRITE, "")
    assert "has not given its address; set forward_to" in await made.detail()
    made.records.error = UnavailableError("PostgreSQL is unavailable")
    assert "PostgreSQL must name" in await made.detail()
    made.records.error = None
    made.records.set(Phase.DUAL_WRITE, FIRST)
    assert await made.holder() == FIRST


async def test_last_known_address_stays_in_use(made: Made) -> None:
    made.records.set(Phase.DUAL_WRITE, FIRST)
    assert await made.holder() == FIRST
    made.records.error = UnavailableError("PostgreSQL is unavailable")
    assert await made.holder() == FIRST
    made.records.error = None
    made.records.record = None  # The schema was dropped.
    assert await made.holder() == FIRST
    made.records.set(Phase.SQLITE_ONLY, "")
    assert await made.holder() == FIRST


async def test_finished_migration_ends_following(made: Made) -> None:
    made.records.set(Phase.READ_POSTGRES, FIRST)
    assert await made.holder() == FIRST
    finished = [made.forwarder.is_finished]
    made.records.set(Phase.POSTGRES_ONLY, "")
    await made.forwarder.follow()
    assert [*finished, made.forwarder.is_finished] == [False, True]
    # Until this server answers, the former holder does.
    assert await made.holder() == FIRST
    made.forwarding.end()
    assert made.forwarder.state() is None


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "db.example:50051", "[2001:db8::1]:50051"])
async def test_calls_do_not_cross_a_network_unencrypted(address: str) -> None:
    refusing, accepting = Made(address), Made(address, may_use_plain_text=True)
    detail = await refusing.detail()
    assert address in detail
    assert "set forward_ca, or accept it with allow_insecure" in detail
    assert await accepting.holder() == address
    for made in (refusing, accepting):
        await made.forwarding.stop()
