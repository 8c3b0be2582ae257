"""The summary of an import, as text or JSON."""

from __future__ import annotations

from dataclasses import dataclass

from sagastore.cli import records
from sagastore.cli.output import print_json
from sagastore.cli.progress import duration, rate_of
from sagastore.cli.settings import Settings

__all__ = ["Summary", "show"]


_COUNTS = ("read", "saved", "unchanged", "skipped", "rejected", "left_behind")


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of an import, including its interrupted runs."""

    source: str
    kind: str
    target: str
    read: int
    saved: int
    unchanged: int
    skipped: int
    rejected: int
    left_behind: int
    resumed_after: int
    seconds: float
    messages_per_second: float
    first_rejects: list[list[str]]
    rejects_file: str | None
    position: str


def show(settings: Settings, summary: Summary) -> None:
    """Print the summary."""
    if settings.as_json:
        _show_json(summary)
    else:
        _show(summary)


def _show_json(summary: Summary) -> None:
    names = ("source", "target", *_COUNTS)
    values = {name: getattr(summary, name) for name in names}
    values |= {
        "resumed_after": summary.resumed_after,
        "seconds": round(summary.seconds, 3),
        "messages_per_second": round(summary.messages_per_second, 1),
        "first_rejects": [
            {"source_key": key, "field": field, "reason": reason}
            for key, field, reason in summary.first_rejects
        ],
        "rejects_file": summary.rejects_file,
        "position": summary.position,
    }
    print_json(records.document(values))


def _show(summary: Summary) -> None:
    from sagastore.cli.console import screen

    out = screen()
    if summary.first_rejects:
        rows = [
            [key, field, reason.removeprefix(f"{field}: ")]
            for key, field, reason in summary.first_rejects
        ]
        out.table("Rejected", ("row", "field", "reason"), rows)
        more = summary.rejected - len(summary.first_rejects)
        where = f"all are in {summary.rejects_file}" if summary.rejects_file else ""
        hint = where or ("--rejects FILE writes all of them to a file" if more else "")
        text = "; ".join(filter(None, (f"{more:,} more" if more else "", hint)))
        if text:
            out.line(text)
        out.line("")
    out.line(("Imported", "bold"), f" {summary.source} into {summary.target}")
    for name in _COUNTS:
        count: int = getattr(summary, name)
        if name == "left_behind" and not count:
            continue
        style = "bold red" if name in {"rejected", "left_behind"} else ""
        shown = name.replace("_", " ")
        out.line((f"{shown:<11}{count:>11,}", style if count else "dim"), indent=2)
    after = f", after {summary.resumed_after:,} before" if summary.resumed_after else ""
    rate = rate_of(summary.messages_per_second, 1.0)
    out.line(f"in {duration(summary.seconds)}, {rate}{after}", indent=2)
