"""The examples of the client's README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.server_process import ServerProcess

README = Path(__file__).parents[2] / "client" / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_first_example_works(running_server: ServerProcess) -> None:
    program = examples()[0].replace("127.0.0.1:50051", running_server.address)
    exec(compile(program, "README.md", "exec"), {})  # noqa: S102 - it is ours


def test_readme_examples_are_valid_python() -> None:
    for example in examples():
        compile(example, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
