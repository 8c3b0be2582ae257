"""Fails if a module of the server besides the supervisor starts an asyncio task.

    python -m scripts.check_tasks

An unsupervised task dies silently: its failure is neither logged nor counted nor visible
in readiness. `create_task` and `ensure_future` are therefore refused outside
`runtime/supervisor.py`, whether called on `asyncio`, on a loop or on a task group.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "server/sagastore_server"
SUPERVISOR = Path("runtime/supervisor.py")

_STARTS = frozenset({"create_task", "ensure_future"})


def main() -> int:
    """Check every module; return the exit status."""
    found = [line for path in sorted(FOLDER.glob("**/*.py")) for line in findings(path)]
    for line in found:
        sys.stderr.write(line + "\n")
    return 1 if found else 0


def findings(path: Path, folder: Path = FOLDER) -> Iterator[str]:
    """Yield a line for each task that the module ``path`` starts itself."""
    name = path.relative_to(folder)
    if name == SUPERVISOR:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Attribute(attr=attribute) if attribute in _STARTS:
                yield f"{name}:{node.lineno}: {attribute}; use runtime.supervisor"
            case ast.ImportFrom(module="asyncio", names=names):
                for imported in names:
                    if imported.name in _STARTS:
                        yield f"{name}:{node.lineno}: {imported.name}; use runtime.supervisor"


if __name__ == "__main__":
    sys.exit(main())
