"""HTTP requests of a user of the ARC SAGA application, and its answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

Scenario = Callable[[TestClient, str], list[Any]]
"""Uses the application under a name, which ids and sessions begin with; returns the answers."""

_MESSAGES: tuple[dict[str, Any], ...] = (
    {
        "role": "user",
        "content": "Where do the badgers sleep in winter?",
        "tags": ["animals", "winter"],
        "timestamp": "2025-04-02T10:00:00+00:00",
        "metadata": {"model": "m-1", "tokens": 9, "nested": {"list": [1, 2.5, None, True]}},
    },
    {
        "role": "assistant",
        "content": "Badgers sleep in a sett. A badger sett is old; badgers inherit it.",
        "tags": ["animals"],
        "timestamp": "2025-04-02T10:00:00+00:00",
    },
    {
        "role": "user",
        "content": "naïve café 東京 👋\n\ttabs",
        "tags": ["ünï ☃", "winter"],
        "timestamp": "2025-04-02T10:00:00+00:00",
    },
    {"role": "system", "content": "no zone", "timestamp": "2025-04-02T09:59:59.123457"},
    {"role": "assistant", "content": "offset", "timestamp": "2025-04-02T12:30:01+02:30"},
)

_FILES: tuple[dict[str, Any], ...] = (
    {
        "filename": "Grüße.pdf",
        "filepath": "files/Grüße.pdf",
        "file_type": "pdf",
        "extracted_text": "naïve\n\ttext 👋",
        "tags": ["b", "a"],
        "file_size": 99_999_999,
        "uploaded_at": "2025-04-02T10:00:00.123457",
        "metadata": {"pages": 3, "ratio": 0.1},
    },
    {"filename": "a.py", "filepath": "files/a.py", "file_type": "code", "tags": []},
    {
        "filename": "n.md",
        "filepath": "files/n.md",
        "file_type": "markdown",
        "uploaded_at": "2025-04-02T12:30:00+02:30",
    },
)


def messages(client: TestClient, name: str) -> list[Any]:
    """Save, read and search messages, also what earlier names have saved."""
    answers: list[Any] = [_answer(client, "GET", "/health")]
    for number, message in enumerate(_MESSAGES):
        # The tag of the name makes the answers of a search independent of other names.
        document = message | {
            "id": f"{name}-{number}",
            "provider": ("openai", "perplexity")[number % 2],
            "session_id": f"{name}-session" if number != 2 else name,
            "tags": [*message.get("tags", []), name],
        }
        answers.append(_answer(client, "POST", "/messages", document))
    # A new id with all defaults, and ids that exist.
    document = {"provider": "groq", "role": "user", "content": f"{name} has no id"}
    answers.append(_answer(client, "POST", "/messages", document)[0])
    for content in ("Where do the badgers sleep in winter?", "another text"):
        document = {"id": f"{name}-0", "provider": "openai", "role": "user", "content": content}
        answers.append(_answer(client, "POST", "/messages", document))
    answers += _reads(client, name)
    answers += _searches(client, name)
    return answers


def _reads(client: TestClient, name: str) -> list[Any]:
    ids = [f"{name}-{number}" for number in range(len(_MESSAGES))]
    paths = [f"/messages/{id}" for id in (*ids, f"{name}-none", "x" * 200, "legacy-1")]
    sessions = (f"{name}-session", name, f"{name}-none", "y" * 300, "legacy")
    paths += [f"/threads/{session}" for session in sessions]
    return [_answer(client, "GET", path) for path in paths]


def _searches(client: TestClient, name: str) -> list[Any]:
    queries = ("badgers", "badgers sleep", '"in winter"', "badg*", "tabs OR lynx", "café", "lynx")
    tags: tuple[list[str] | None, ...] = ([name], [name, "animals"], [name, "ünï ☃"])
    asked: list[dict[str, Any]] = [
        {"query": query, "tags": tags} for query, tags in itertools.product((*queries, ""), tags)
    ]
    # All names, which includes the legacy messages.
    asked += [{"query": "sett"}, {"query": "hello"}, {"query": "", "tags": ["winter"], "limit": 3}]
    asked += [{"query": "winter", "limit": 1, "tags": [name]}, {"query": "badgers", "limit": 0}]
    return [_answer(client, "POST", "/search", document) for document in asked]


def files(client: TestClient, name: str) -> list[Any]:
    """Save and read records of files."""
    answers: list[Any] = []
    for number, file in enumerate(_FILES):
        document = file | {"id": f"{name}-{number}"}
        answers.append(_answer(client, "POST", "/files", document))
        if "uploaded_at" in file:
            answers.append(_answer(client, "GET", f"/files/{name}-{number}"))
    taken = {"id": f"{name}-0", "filename": "x", "filepath": "x", "file_type": "text"}
    answers.append(_answer(client, "POST", "/files", taken))
    ids = (f"{name}-0", f"{name}-none", "x" * 200, "legacy-file")
    return answers + [_answer(client, "GET", f"/files/{id}") for id in ids]


def legacy(client: TestClient) -> None:
    """Save what the application has stored before its storage is replaced."""
    for number, role in enumerate(("user", "assistant", "user")):
        document = {
            "id": f"legacy-{number}",
            "provider": "anthropic",
            "role": role,
            "content": f"hello number {number}" + " of the sett" * (number == 1),
            "tags": ["old"],
            "timestamp": "2024-12-24T18:00:00",
            "session_id": "legacy",
            "metadata": {"n": number},
        }
        assert _answer(client, "POST", "/messages", document)[0] == 201
    document = _FILES[0] | {"id": "legacy-file"}
    assert _answer(client, "POST", "/files", document)[0] == 201


def _answer(
    client: TestClient, method: str, path: str, document: dict[str, Any] | None = None
) -> tuple[int, Any, Any]:
    """Return status, body and request, without texts and scores, which differ by storage."""
    response = client.request(method, path, json=document)
    body = response.json()
    body.pop("detail", None)
    results = body.get("results", [])
    scores = [result.pop("score") for result in results]
    assert scores == sorted(scores, reverse=True)
    return response.status_code, body, (method, path, document)
