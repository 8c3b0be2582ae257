"""Determinism check: reports code in `migration/` that could behave differently between runs.

    python -m scripts.check_determinism

The simulation (`tests/simulation`) repeats a round exactly only if the code under test takes time
and randomness from `storage.environment` and never depends on the order of a set, which follows
addresses and hashes and differs between processes. Ruff cannot restrict these rules to one folder.

- `time`, `random`, `secrets` and `uuid` are not imported; `datetime.now` and the loop's `time` are
  not called.
- Sets are refused: `set`, set comprehensions and annotations `set[...]`. A set display is allowed
  where order cannot matter: after `in`, and as an argument of `asyncio.wait`. `frozenset` is
  allowed for lookups. A dict keeps insertion order.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "server/sagastore_server/migration"

_MODULES = frozenset({"time", "random", "secrets", "uuid"})
_NOW = frozenset({"now", "utcnow", "today"})


def main() -> int:
    """Check every module; return the exit status."""
    found = [line for path in sorted(FOLDER.glob("**/*.py")) for line in findings(path)]
    for line in found:
        sys.stderr.write(line + "\n")
    return 1 if found else 0


def findings(path: Path) -> Iterator[str]:
    """Yield a line for each violation in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    harmless = set(map(id, _unordered_uses(tree)))
    for node in ast.walk(tree):
        what = _fault(node, harmless)
        if what:
            yield f"{path.name}:{getattr(node, 'lineno', 0)}: {what}"


def _unordered_uses(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield set displays whose order cannot matter."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(ops=ops, comparators=operands):
                yield from (
                    operand
                    for operator, operand in zip(ops, operands, strict=True)
                    if isinstance(operator, ast.In | ast.NotIn)
                )
            case ast.Call(func=ast.Attribute(value=ast.Name("asyncio"), attr="wait"), args=args):
                yield from args


def _fault(node: ast.AST, harmless: set[int]) -> str:  # noqa: PLR0911 - a table of kinds
    match node:
        case ast.Import(names=names):
            return _imports(alias.name for alias in names)
        case ast.ImportFrom(module=str(module)):
            return _imports([module])
        case ast.Attribute(value=ast.Name("datetime" | "date"), attr=name) if name in _NOW:
            return "reads the wall clock; use the Clock of the environment"
        case ast.Call(func=ast.Attribute(value=ast.Call(func=inner), attr="time")):
            if isinstance(inner, ast.Attribute) and inner.attr == "get_running_loop":
                return "reads the loop's clock; use the Clock of the environment"
        case ast.Call(func=ast.Name("set")) | ast.SetComp() | ast.Subscript(value=ast.Name("set")):
            return "uses a set, whose order differs between runs; use a dict"
        case ast.Set() if id(node) not in harmless:
            return "uses a set, whose order differs between runs; use a dict or a tuple"
    return ""


def _imports(names: Iterable[str]) -> str:
    for name in names:
        if name.partition(".")[0] in _MODULES:
            return f"imports {name}; use the Clock and Randomness of the environment"
    return ""


if __name__ == "__main__":
    sys.exit(main())
