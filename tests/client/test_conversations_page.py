"""The examples of the page about conversations."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.server_process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "conversations.md"


def test_examples_of_the_page_work(running_server: ServerProcess) -> None:
    text = PAGE.read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 4
    for program in programs:
        code = program.replace("127.0.0.1:50051", running_server.address)
        exec(compile(code, PAGE.name, "exec"), {})  # noqa: S102 - the page is part of the project
