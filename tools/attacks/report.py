"""Table of the figures of all attacks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.attacks.file_attack import FileResult
from tools.attacks.measurement import Result
from tools.attacks.plan import MB

_COLUMNS = ("attack", "sent", "growth MB", "left MB", "p99 ratio", "cancelled", "refused",
            "/livez bad", "log B/s", "verdict")  # fmt: skip


def table(results: Sequence[Result | FileResult]) -> str:
    """Return the figures as a table of text, and the complaints below it."""
    rows = [_COLUMNS, *map(_row, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [
        f"{_name(result)}: {complaint}" for result in results for complaint in result.complaints
    ]
    return "\n".join(lines)


def write(results: Sequence[Result | FileResult], folder: Path) -> None:
    """Write ``report.txt`` and ``report.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(table(results) + "\n", encoding="utf-8")
    documents = [_document(result) for result in results]
    (folder / "report.json").write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")


def _name(result: Result | FileResult) -> str:
    return result.attack.name


def _verdict(result: Result | FileResult) -> str:
    if isinstance(result, FileResult) and result.skipped:
        return "skipped"
    return "FAILED" if result.complaints else "passed"


def _row(result: Result | FileResult) -> tuple[str, ...]:
    if isinstance(result, FileResult):
        sent = result.skipped or result.sent
        return (_name(result), sent, *["-"] * 7, _verdict(result))
    codes = result.codes + result.newcomers
    refused = codes.total() - codes["OK"] - codes["CANCELLED"]
    return (
        _name(result),
        _sent(result),
        f"{result.growth:.0f}",
        f"{result.residue:.0f}",
        f"{result.ratio:.1f}",
        str(codes["CANCELLED"]),
        str(refused),
        str(result.probes.total() - result.probes["200"]),
        f"{result.log_rate:,.0f}",
        _verdict(result),
    )


def _sent(result: Result) -> str:
    sent = result.sent.get("sent", 0) / MB
    return f"{sent:.1f} MB, {result.sent.get('connections', 0):,} connections"


def _document(result: Result | FileResult) -> dict[str, object]:
    shared = {"attack": _name(result), "what": result.attack.what, "verdict": _verdict(result),
              "complaints": result.complaints}  # fmt: skip
    if isinstance(result, FileResult):
        return {**shared, "sent": result.sent, "skipped": result.skipped}
    return {
        **shared,
        "sent": result.sent,
        "idle_memory_mb": result.idle_memory,
        "growth_mb": result.growth,
        "residue_mb": result.residue,
        "idle_p99_seconds": result.idle_p99,
        "p99_seconds": result.p99,
        "codes": _plain(result.codes),
        "newcomers": _plain(result.newcomers),
        "livez": _plain(result.probes),
        "log_bytes_per_second": result.log_rate,
    }


def _plain(counts: Counter[str]) -> dict[str, int]:
    return dict(counts)
