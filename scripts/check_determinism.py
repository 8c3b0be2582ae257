"""Fails if `migration/` could run differently when it is given the same clock and chance.

    python -m scripts.check_determinism

The simulation (`tests/simulation`) repeats a round exactly only if the code under it takes
time and randomness from `storage.environment`, and never depends on the order of a set: that
order follows addresses and hashes, which differ from process to process. Ruff cannot forbid a
module for one folder alone, and knows nothing of sets.

- `time`, `random`, `secrets` and `uuid` are not imported, `datetime.now` and the like not called,
  nor the loop's `time`.
- No set is kept: `set`, set comprehensions and annotations `set[...]` are refused. A set
  display is allowed where order cannot matter: behind `in`, and as what `asyncio.wait` gets.
  `frozenset` is allowed for what is only looked up. A dict keeps insertion order instead.
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
    """Yield a line for everything in a module that could differ from run to run."""
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
            return "keeps a set, whose order differs from run to run; use a dict"
        case ast.Set() if id(node) not in harmless:
            return "keeps a set, whose order differs from run to run; use a dict or a tuple"
    return ""


def _imports(names: Iterable[str]) -> str:
    for name in names:
        if name.partition(".")[0] in _MODULES:
            return f"imports {name}; use the Clock and Randomness of the environment"
    return ""


if __name__ == "__main__":
    sys.exit(main())
