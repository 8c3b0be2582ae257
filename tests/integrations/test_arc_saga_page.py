"""The examples of the page about ARC SAGA."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sagastore import Client, Message
from tests.integrations.arc_app import dataclass_models, exceptions, storage
from tests.support.server_process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "arc-saga.md"


@pytest.fixture
def arc_saga(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the application under the name of the real one."""
    modules = {
        "arc_saga": ModuleType("arc_saga"),
        "arc_saga.models": dataclass_models,
        "arc_saga.exceptions": exceptions,
        "arc_saga.storage": ModuleType("arc_saga.storage"),
        "arc_saga.storage.base": storage,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("arc_saga")
def test_examples_of_the_page_work(
    running_server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    programs = re.findall(r"^ *```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert len(programs) == 3
    with Client(running_server.address) as client:
        client.save(Message("openai", "user", "A restaurant in San Jose", session_id="dev-1_00000"))
    for program in programs:
        names: dict[str, Any] = {"__name__": "example"}
        code = re.sub(r"^  ", "", program, flags=re.MULTILINE) if program[0] == " " else program
        exec(  # noqa: S102 - the page is part of the project
            compile(code.replace("127.0.0.1:50051", running_server.address), PAGE.name, "exec"),
            names,
        )
    assert "healthy: True\nmessages of the session: 1\n" in capsys.readouterr().out
