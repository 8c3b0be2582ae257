"""Load test of a running service with ghz (``make load``).

    python -m tools.benchmarks.ghz_load [NAME ...] [--target HOST:PORT] [--seconds N | --calls N]
        [--tls | --cacert FILE] [--cert FILE --key FILE] [--server-name NAME] [--folder DIR]

Names are save, get, search, bulk-save, and mix, which runs all four concurrently; the
configurations are in ``tools/load/``. A bearer token is read from ``SAGASTORE_TOKEN`` and appears
neither on a command line nor in a report. Reports are kept as JSON and as HTML. Exit status 1 if a
call failed, or if ghz is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks.load import find_ghz

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "tools" / "load"
FOLDER = ROOT / "build" / "load"
KINDS = ("save", "get", "search", "bulk-save")
MIX = "mix"
TOKEN = "SAGASTORE_TOKEN"  # noqa: S105 - the name of a variable
HOW = (
    "error: ghz is missing; build it with `make ghz` (needs Go, https://go.dev/dl), or install a "
    "release from https://github.com/bojand/ghz/releases on the PATH"
)
_PREPARE = "get-prepare"
_BAR = 40
_SHORTEST = 0.001
"""Seconds of a load; ghz takes milliseconds and treats zero as no limit."""


class GhzError(Exception):
    """ghz did not run; the message says why."""


class Runner:
    """Runs ghz against one service."""

    def __init__(self, ghz: Path, target: str, options: Sequence[str], folder: Path) -> None:
        """Pass ``options`` to ghz; keep reports in ``folder``."""
        self._ghz = ghz
        self._target = target
        self._options = options
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, names: Sequence[str], length: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Run configurations concurrently and return ghz's reports.

        Args:
            names: The configurations.
            length: The options for the duration, unless the configurations define it.

        Raises:
            GhzError: A configuration did not run.
        """
        with tempfile.TemporaryDirectory() as work:
            started = [self._start(name, Path(work), length) for name in names]
            said = [process.communicate()[1] for process in started]
            return [
                self._report(Path(work) / f"{name}.json", error)
                for name, error in zip(names, said, strict=True)
            ]

    def keep(self, name: str, report: dict[str, Any]) -> None:
        """Save a report as JSON and HTML, without credentials."""
        report.get("options", {}).pop("metadata", None)
        text = json.dumps(report, indent=1) + "\n"
        (self._folder / f"{name}.json").write_text(text, encoding="utf-8")
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            page = Console(record=True, width=100, file=nowhere)
            page.print(overview({name: report}))
            page.print(percentiles(report))
            page.print(histogram(report))
            page.save_html(str(self._folder / f"{name}.html"))

    def _start(self, name: str, work: Path, length: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                self._ghz,
                f"--config={CONFIGURATIONS / name}.json",
                *length,
                *self._options,
                "--format=json",
                f"--output={work / name}.json",
                self._target,
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _report(path: Path, error: str) -> dict[str, Any]:
        if not path.exists():
            raise GhzError(reason(error))
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report


def reason(error: str) -> str:
    """Return the reason why ghz ended without a report, from its standard error, in one line."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    crash = next((line for line in lines if line.startswith(("panic:", "fatal error:"))), None)
    if crash is None:
        return lines[-1] if lines else "it printed no error"
    # ghz 0.120 starts its timer before it connects, and then sends to a closed channel
    # (ConstWorkerTicker).
    if "WorkerTicker" in error:
        return "the duration ended before the first call; increase --seconds or use --calls"
    return f"ghz crashed ({crash})"


def failed(report: dict[str, Any]) -> dict[str, int]:
    """Return the number of failed calls in a report, by error message."""
    return dict(report.get("errorDistribution") or {})


def overview(reports: dict[str, dict[str, Any]]) -> Table:
    """Return the table of calls, rates and latencies."""
    table = Table("", "calls", "calls/s", "p50", "p95", "p99", "slowest", "failed")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, report in reports.items():
        at = {one["percentage"]: one["latency"] for one in report.get("latencyDistribution") or ()}
        times = [at.get(50), at.get(95), at.get(99), report["slowest"]]
        table.add_row(
            name,
            f"{report['count']:,}",
            f"{report['rps']:,.0f}",
            *map(_milliseconds, times),
            f"{sum(failed(report).values()):,}",
        )
    return table


def percentiles(report: dict[str, Any]) -> Table:
    """Return the table of latency percentiles."""
    table = Table("percentile", "latency")
    for one in report.get("latencyDistribution") or ():
        table.add_row(f"{one['percentage']} %", _milliseconds(one["latency"]))
    for text, times in failed(report).items():
        table.add_row(f"{times:,} failed", text)
    return table


def histogram(report: dict[str, Any]) -> Table:
    """Return the latency distribution as bars."""
    table = Table("up to", "calls", "")
    found = report.get("histogram") or []
    most = max([one["count"] for one in found], default=1) or 1
    for one in found:
        bar = "█" * round(_BAR * one["count"] / most)
        table.add_row(_milliseconds(one["mark"] * 1e9), f"{one['count']:,}", bar)
    return table


def _milliseconds(nanoseconds: float | None) -> str:
    return "-" if nanoseconds is None else f"{nanoseconds / 1e6:,.1f} ms"


@contextmanager
def _options(given: argparse.Namespace) -> Iterator[list[str]]:
    """Yield ghz's options for TLS and the token; the token is in a private file."""
    options = [
        f"--{option}={value}"
        for option, value in (
            ("cacert", given.cacert),
            ("cert", given.cert),
            ("key", given.key),
            ("cname", given.server_name),
        )
        if value
    ]
    if not given.tls and not given.cacert:
        options.append("--insecure")
    token = os.environ.get(TOKEN)
    if not token:
        yield options
        return
    # Temporary files are readable by their owner only.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"authorization": f"Bearer {token}"}, file)
        file.flush()
        yield [*options, f"--metadata-file={file.name}"]


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make load", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[*KINDS, MIX], metavar="NAME")
    parser.add_argument("--target", default="127.0.0.1:50051", help="HOST:PORT of the service")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="seconds per load (10)")
    length.add_argument("--calls", type=int, help="calls per load, instead of a duration")
    parser.add_argument("--tls", action="store_true", help="use TLS with the system's certificates")
    parser.add_argument("--cacert", help="use TLS with the CA certificates in this file")
    parser.add_argument("--cert", help="client certificate")
    parser.add_argument("--key", help="its key")
    parser.add_argument("--server-name", help="expected name in the service's certificate")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for reports")
    given = parser.parse_intermixed_args()
    unknown = sorted(set(given.names) - {*KINDS, MIX})
    if unknown:
        parser.error(f"unknown load {unknown[0]}; choose from {', '.join([*KINDS, MIX])}")
    # With zero, ghz sends for ever.
    if given.seconds is not None and given.seconds < _SHORTEST:
        parser.error(f"--seconds must be at least {_SHORTEST}")
    if given.calls is not None and given.calls < 1:
        parser.error("--calls must be at least 1")
    plain = not given.tls and not given.cacert
    here = given.target.rpartition(":")[0] in {"127.0.0.1", "localhost", "[::1]"}
    if plain and not here and os.environ.get(TOKEN):
        parser.error(f"{TOKEN} would be sent unencrypted; use --tls or --cacert FILE")
    return given


def _length(given: argparse.Namespace) -> list[str]:
    if given.calls is not None:
        return ["--duration=0", f"--total={given.calls}"]
    if given.seconds is not None:
        return [f"--duration={given.seconds:.3f}s", "--duration-stop=wait"]
    return []


def _loaded(runner: Runner, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    reports: dict[str, dict[str, Any]] = {}
    if {"get", MIX} & set(given.names):
        (prepared,) = runner.run([_PREPARE])
        if failed(prepared):
            return {_PREPARE: prepared}
    for name in given.names:
        kinds = KINDS if name == MIX else (name,)
        for kind, report in zip(kinds, runner.run(kinds, _length(given)), strict=True):
            reports[f"{MIX}-{kind}" if name == MIX else kind] = report
    return reports


def main() -> int:
    """Load the service, print and save the reports, and return the exit status."""
    given = _parsed()
    ghz = find_ghz()
    if ghz is None:
        print(HOW, file=sys.stderr)
        return 1
    with _options(given) as options:
        runner = Runner(ghz, given.target, options, given.folder)
        try:
            reports = _loaded(runner, given)
        except GhzError as exc:
            print(f"error: ghz failed against {given.target}: {exc}", file=sys.stderr)
            return 1
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for name, report in reports.items():
        runner.keep(name, report)
    console.print(overview(reports))
    console.print(f"reports: {given.folder}")
    errors = {text: times for report in reports.values() for text, times in failed(report).items()}
    for text, times in errors.items():
        print(f"error: {times} calls failed: {text}", file=sys.stderr)
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
