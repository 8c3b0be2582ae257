"""Steps of the scripted server for calls about sessions."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sagastore import AbortedError, AlreadyExistsError
from sagastore.v1 import session_pb2
from tests.client.failing.scripted import answer, refuse, retry_info

Code = grpc.StatusCode

OVERLOADED = refuse(Code.RESOURCE_EXHAUSTED, "overloaded", retry_info(0))
EXISTS = refuse(Code.ALREADY_EXISTS, "the session exists")
MOVED = refuse(Code.ABORTED, "the revision is another")
NOT_FOUND = refuse(Code.NOT_FOUND, "no session has the id 's'")
REFUSALS = pytest.mark.parametrize(
    ("if_revision", "refusal", "kind"), [(0, EXISTS, AlreadyExistsError), (4, MOVED, AbortedError)]
)


def with_revision(revision: int) -> Any:
    session = session_pb2.Session(session_id="s", revision=revision)
    return answer(session_pb2.GetSessionResponse(session=session))
