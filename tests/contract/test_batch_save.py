"""Batches of saves, of which each request stands for itself."""

from __future__ import annotations

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import AlreadyExistsError, RevisionMismatchError
from sagastore_server.storage.model import SaveRequest, SaveResult
from sagastore_server.storage.query import Scan
from tests.support.backends import Place
from tests.support.drafts import draft


def results(outcomes: list[SaveResult | Exception]) -> list[SaveResult]:
    """Return the outcomes of a batch in which nothing failed."""
    found = [one for one in outcomes if isinstance(one, SaveResult)]
    assert len(found) == len(outcomes)
    return found


async def test_batch_reports_each_result(backend: StorageBackend, place: Place) -> None:
    saved = results(await backend.batch_save([SaveRequest(draft(f"m-{n}")) for n in range(5)]))
    assert [(one.id, one.created) for one in saved] == [(f"m-{n}", True) for n in range(5)]
    for one in saved:
        assert set(one.durable_on) == set(place.kind.durable_on)
        assert (await backend.get(one.id)).revision == one.revision


async def test_batch_is_stored_in_order(backend: StorageBackend) -> None:
    ids = [f"m-{n}" for n in (3, 1, 2, 0)]
    drafts = [draft(one, session_id="s") for one in ids]
    results(await backend.batch_save([SaveRequest(one) for one in drafts]))
    page = await backend.list_session("s", Scan(False, 10))
    assert [one.id for one in page.messages] == ids


async def test_batch_request_sees_the_ones_before_it(backend: StorageBackend) -> None:
    first = await backend.save(draft("m", "one"))
    outcomes = await backend.batch_save(
        [
            SaveRequest(draft("m", "two"), first.revision),
            SaveRequest(draft("m", "three"), first.revision),
            SaveRequest(draft("m", "two")),
            SaveRequest(draft("new"), 0),
            SaveRequest(draft("new"), 0),
        ]
    )
    changed, stale, same, created, exists = outcomes
    assert isinstance(changed, SaveResult)
    assert isinstance(stale, RevisionMismatchError)
    assert isinstance(same, SaveResult)
    assert (same.revision, same.created) == (changed.revision, False)
    assert isinstance(created, SaveResult)
    assert created.created
    assert isinstance(exists, AlreadyExistsError)
    assert (await backend.get("m")).content == "two"


async def test_batch_request_with_a_bad_value_fails_alone(
    backend: StorageBackend, kind: str
) -> None:
    """Validation refuses it; if something escapes validation, only its own request fails."""
    bad = draft("bad", "a lone surrogate: \ud800")
    outcomes = await backend.batch_save([SaveRequest(one) for one in (draft("a"), bad, draft("b"))])
    assert [isinstance(one, SaveResult) for one in (outcomes[0], outcomes[2])] == [True, True]
    stores_anything = kind in {"memory", "model-source", "model-target"}
    assert isinstance(outcomes[1], Exception) is not stores_anything
    found = await backend.batch_get(["a", "bad", "b"])
    assert set(found) - {"bad"} == {"a", "b"}
    assert ("bad" in found) is stores_anything
