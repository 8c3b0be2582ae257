"""The examples of the page about consistency, with PostgreSQL as the only store."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

from sagastore_server.interfaces.consistency import decoded
from tests.cli.command import Sagastore
from tests.support.server_process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "consistency.md"
SHOWN_POSITION = re.compile(r"\bA[A-Za-z0-9_-]{27}\b")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


async def test_programs_of_the_page_work(shared_postgres_server: ServerProcess) -> None:
    programs = blocks("python")
    assert len(programs) == 2
    for program in programs:
        code = compile(
            program.replace("127.0.0.1:50051", shared_postgres_server.address), PAGE.name, "exec"
        )
        await asyncio.to_thread(exec, code, {})


def test_commands_of_the_page_work(shared_postgres_server: ServerProcess, tmp_path: Path) -> None:
    (block,) = blocks("console")
    save, *reads = re.findall(r"^\$ sagastore (.*)$", block, re.MULTILINE)
    cli = Sagastore(shared_postgres_server.address, tmp_path)
    saved = cli.json(*shlex.split(save))
    assert decoded(saved["position"])
    shown = re.search(r"^\{.*\}$", block, re.MULTILINE)
    assert shown is not None
    assert re.findall(r'"(\w+)":', shown[0]) == list(saved)
    for read in reads:
        assert "When?" in cli.ok(*shlex.split(SHOWN_POSITION.sub(saved["position"], read)))
