"""Totals of a campaign, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from tools.chaos.plan import PHASES
from tools.chaos.replication.totals import ClusterTotals

LOSSES = ("LOST_WRITE", "LIST_MISSING", "SEARCH_MISSING", "EXPORT_INCOMPLETE")
STALE = ("STALE_READ", "STALE_POSITION", "REVISION_WENT_BACK")
RESURRECTED = ("RESURRECTED_DELETE",)


def kind_of(complaint: str) -> str:
    """Return the kind of a finding besides the history: the text before the colon."""
    return complaint.partition(":")[0]


class Totals:
    """Sums up rounds."""

    def __init__(self) -> None:
        self.rounds = 0
        self.failed: list[dict[str, Any]] = []
        self.faults: Counter[tuple[str, str]] = Counter()
        self.changes: Counter[str] = Counter()
        self.begins: Counter[str] = Counter()
        self.ended_in: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0
        self.unavailable = 0.0
        self.unavailable_in = 0
        self.starts = 0
        self.porcupine: Counter[str] = Counter()
        """Rounds by Porcupine's verdict, with its ids and its disagreements."""
        self.porcupine_seconds = 0.0
        self.cluster = ClusterTotals()

    def add(self, verdict: dict[str, Any]) -> None:
        report, plan = verdict["report"], verdict["plan"]
        self.cluster.add(verdict)
        self.rounds += 1
        self.seconds += verdict["seconds"]
        self.starts += verdict["starts"]
        self.begins[f"{plan['origin']}, {plan['begins']}"] += 1
        self.ended_in[verdict["ended_in"] or "(not finished)"] += 1
        for name, row in verdict["faults"].items():
            for phase, count in row.items():
                self.faults[name, phase] += count
        self.changes.update(verdict["changes"])
        self.kinds.update(report["kinds"])
        self.kinds.update(map(kind_of, verdict["wrong"]))
        for name in ("operations", "unknown", "acknowledged", "reads"):
            self.calls[name] += report[name]
        self.calls["looks"] += report["by_kind"].get("Peek/ok", 0)
        # Inspections are part of the history, but they are not calls.
        self.calls["operations"] -= sum(
            count for name, count in report["by_kind"].items() if name.startswith("Peek/")
        )
        for name, count in {**verdict["second_servers"], **verdict["backups"]}.items():
            self.calls[name] += count
        if theirs := verdict.get("porcupine"):
            self.porcupine[theirs["verdict"]] += 1
            self.porcupine["rounds"] += 1
            self.porcupine["ids"] += theirs["ids"]
            self.porcupine["operations"] += theirs["operations"]
            self.porcupine["disagreements"] += len(theirs["disagreements"])
            self.porcupine_seconds += theirs["seconds"]
        if verdict["longest_unavailability"] > self.unavailable:
            self.unavailable = verdict["longest_unavailability"]
            self.unavailable_in = plan["seed"]
        if verdict["failed"]:
            self.failed.append(verdict)

    def as_json(self) -> dict[str, Any]:
        table: dict[str, dict[str, int]] = {}
        for (name, phase), count in sorted(self.faults.items()):
            table.setdefault(name, {})[phase] = count
        return {
            "rounds": self.rounds,
            "failed": [verdict["plan"]["seed"] for verdict in self.failed],
            "seconds": round(self.seconds, 1),
            "faults": table,
            "faults_in_all": sum(self.faults.values()),
            "phase_changes": dict(sorted(self.changes.items())),
            "began_with": dict(sorted(self.begins.items())),
            "ended_in": dict(sorted(self.ended_in.items())),
            "server_starts": self.starts,
            "calls": self.calls["operations"],
            "unknown": self.calls["unknown"],
            "acknowledged_writes": self.calls["acknowledged"],
            "answers_checked": self.calls["reads"],
            "looks_into_a_store": self.calls["looks"],
            "second_servers_refused": self.calls["refused"],
            "backups_made": self.calls["made"],
            "losses": self._of(LOSSES),
            "stale_reads": self._of(STALE),
            "resurrected_deletes": self._of(RESURRECTED),
            "violations": sum(self.kinds.values()),
            "violations_by_kind": dict(sorted(self.kinds.items())),
            "longest_unavailability": round(self.unavailable, 2),
            "longest_unavailability_in": self.unavailable_in,
            "porcupine": self._porcupine_json(),
            "cluster": self.cluster.as_json(),
        }

    def _of(self, kinds: tuple[str, ...]) -> int:
        return sum(self.kinds[kind] for kind in kinds)

    def _porcupine_json(self) -> dict[str, Any]:
        """Return Porcupine's totals; empty if it did not run."""
        if not self.porcupine:
            return {}
        names = ("rounds", "operations", "ids", "linearizable", "violation", "unknown")
        counts = {name: self.porcupine[name] for name in (*names, "disagreements")}
        return counts | {"seconds": round(self.porcupine_seconds, 1)}

    def _porcupine_text(self) -> list[str]:
        totals = self._porcupine_json()
        if not totals:
            return []
        verdicts = ", ".join(
            f"{totals[one]} {one}" for one in ("linearizable", "violation", "unknown")
        )
        extent = (
            f"{totals['operations']:,} operations, {totals['ids']:,} ids, {totals['seconds']} s"
        )
        return [
            f"  Porcupine                 {verdicts} of {totals['rounds']} histories ({extent})",
            f"  Disagreements             {totals['disagreements']}",
        ]

    def text(self) -> str:
        totals = self.as_json()
        kinds = len(totals["faults"])
        lines = [
            f"  Rounds                    {self.rounds:,} ({len(self.failed)} failed)",
            f"  Faults                    {totals['faults_in_all']:,} of {kinds} kinds",
            f"  Changes of phase          {sum(self.changes.values()):,}",
            f"  Starts of the server      {self.starts:,}",
            f"  Calls                     {totals['calls']:,}",
            f"  Of unknown outcome        {totals['unknown']:,}",
            f"  Acknowledged writes       {totals['acknowledged_writes']:,}",
            f"  Answers checked           {totals['answers_checked']:,} messages",
            f"  Store inspections         {totals['looks_into_a_store']:,}",
            f"  Losses                    {totals['losses']}",
            f"  Stale reads               {totals['stale_reads']}",
            f"  Resurrected deletes       {totals['resurrected_deletes']}",
            f"  Violations in total       {totals['violations']}",
            f"  Longest unavailability    {self.unavailable:.1f} s (seed {self.unavailable_in})",
            *self._porcupine_text(),
            *self.cluster.text(),
            "",
            *self._table(),
        ]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        labels = [phase.label for phase in PHASES]
        width = max([len(name) for name, _ in self.faults] or [5])
        lines = [f"  {'fault':{width}}  " + "  ".join(f"{label:>13}" for label in labels)]
        for name in sorted({name for name, _ in self.faults}):
            cells = "  ".join(f"{self.faults[name, label]:>13,}" for label in labels)
            lines.append(f"  {name:{width}}  {cells}")
        return lines


class PlantResult(NamedTuple):
    """Result of a planted fault."""

    first: int
    """Round in which it was first caught; 0: none."""
    rounds: int
    """Number of rounds run."""
    by: list[str]


def caught(name: str, verdicts: list[dict[str, Any]]) -> PlantResult:
    """Find the round in which the planted fault ``name`` was first caught."""
    own = [verdict for verdict in verdicts if verdict["plant"] == name]
    own.sort(key=lambda verdict: int(verdict["plan"]["seed"]))
    for number, verdict in enumerate(own, start=1):
        if verdict["failed"]:
            by = sorted({*verdict["report"]["kinds"], *map(kind_of, verdict["wrong"])})
            return PlantResult(number, len(own), by)
    return PlantResult(0, len(own), [])


def planted_table(found: dict[str, PlantResult], whats: dict[str, str]) -> str:
    """Return a Markdown table of the planted faults and the rounds that caught them."""
    lines = [
        "| planted fault | what is wrong | caught in round | by |",
        "|---|---|---|---|",
    ]
    for name, one in found.items():
        when = str(one.first) if one.first else f"**not in {one.rounds}**"
        lines.append(f"| `{name}` | {whats[name]} | {when} | {', '.join(one.by)} |")
    return "\n".join(lines)
