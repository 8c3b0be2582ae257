"""`make lint` refuses tasks that are started outside the supervisor."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_tasks import SUPERVISOR, findings


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasyncio.create_task(work())",
        "import asyncio\nasyncio.ensure_future(work())",
        "from asyncio import create_task\ncreate_task(work())",
        "loop.create_task(work())",
    ],
)
def test_task_outside_the_supervisor_is_refused(tmp_path: Path, source: str) -> None:
    module = tmp_path / "module.py"
    module.write_text(source, encoding="utf-8")
    assert len(list(findings(module, tmp_path))) == 1


def test_supervisor_may_start_tasks(tmp_path: Path) -> None:
    module = tmp_path / SUPERVISOR
    module.parent.mkdir()
    module.write_text("import asyncio\nasyncio.create_task(work())", encoding="utf-8")
    assert list(findings(module, tmp_path)) == []
