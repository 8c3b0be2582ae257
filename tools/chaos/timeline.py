"""Timeline of a round as SVG: phases, faults, operator actions, and the outcome of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

from tools.chaos.history import History, Mark, Outcome

_LEFT, _WIDTH, _ROW = 230, 900, 18
_BIN = 100_000_000
"""Nanoseconds per bar."""
_TALL = 60

_PHASES = {
    "sqlite-only": "#9ecae1",
    "dual-write": "#c6dbef",
    "backfill": "#fdd0a2",
    "read-postgres": "#a1d99b",
    "postgres-only": "#41ab5d",
}
_STORES = {"SQLITE": "#c6dbef", "POSTGRESQL": "#a1d99b"}
_ANSWERS = {"ok": "#31a354", "refused": "#756bb1", "unknown": "#de2d26"}

Span = tuple[str, int, int]


def draw(history: History, path: Path, title: str) -> None:
    """Write the timeline to ``path`` as SVG."""
    times = [mark.at for mark in history.marks] + [one.start for one in history]
    if not times:
        times = [0]
    picture = _Picture(min(times), max(*times, min(times) + 1))
    picture.title(title)
    marks = sorted(history.marks, key=lambda one: one.at)
    picture.band("phase", _phases(marks, picture.last), _PHASES)
    picture.band("reads from", _reads(marks, picture.last), _STORES)
    picture.band("server", _downs(marks, picture.last), {"down": "#636363"})
    for span in _faults(marks, picture.last):
        picture.band(span[0], [span], {})
    picture.ticks("operator", [mark for mark in marks if mark.kind in {"operator", "tripped"}])
    picture.bars("answers per 0.1 s", history)
    picture.save(path)


class _Picture:
    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self.last = last
        self._y = 10
        self._parts: list[str] = []

    def _x(self, at: int) -> float:
        return _LEFT + (at - self._first) / (self.last - self._first) * _WIDTH

    def title(self, text: str) -> None:
        seconds = (self.last - self._first) // 1_000_000_000
        self._y += 10
        self._label(text)
        for second in range(seconds + 1):
            x = self._x(self._first + second * 1_000_000_000)
            self._parts.append(
                f'<line x1="{x:.1f}" y1="24" x2="{x:.1f}" y2="100%" stroke="#eee"/>'
                f'<text x="{x:.1f}" y="20" class="s">{second}</text>'
            )
        self._y += 10

    def band(self, label: str, spans: list[Span], colours: dict[str, str]) -> None:
        self._y += _ROW
        self._label(label)
        for name, begin, end in spans:
            x, width = self._x(begin), max(2.0, self._x(end) - self._x(begin))
            colour = colours.get(name, "#fc9272")
            self._parts.append(
                f'<rect x="{x:.1f}" y="{self._y - 11}" width="{width:.1f}" height="13" '
                f'fill="{colour}"><title>{escape(name)}</title></rect>'
            )
            if name in _PHASES and width > 60:
                self._parts.append(f'<text x="{x + 3:.1f}" y="{self._y}" class="s">{name}</text>')

    def ticks(self, label: str, marks: list[Mark]) -> None:
        self._y += _ROW
        self._label(label)
        for mark in marks:
            x = self._x(mark.at)
            done = "done" in mark.facts
            colour = "#de2d26" if mark.kind == "tripped" else "#3182bd" if done else "#bdbdbd"
            facts = ", ".join(f"{name}: {value}" for name, value in mark.facts.items())
            self._parts.append(
                f'<rect x="{x - 1.5:.1f}" y="{self._y - 11}" width="3" height="13" '
                f'fill="{colour}"><title>{escape(facts)}</title></rect>'
            )

    def bars(self, label: str, history: History) -> None:
        counts: Counter[tuple[int, str]] = Counter()
        for one in history:
            if one.end is not None and one.outcome is not Outcome.OPEN:
                counts[(one.end - self._first) // _BIN, str(one.outcome)] += 1
        most = max((count for count in counts.values()), default=1)
        base = self._y + _ROW + _TALL
        self._y = base
        self._label(label)
        width = max(1.0, self._x(self._first + _BIN) - _LEFT - 0.5)
        for (number, outcome), count in counts.items():
            x, height = self._x(self._first + number * _BIN), count / most * _TALL
            y = base if outcome != "ok" else base - height
            self._parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{_ANSWERS[outcome]}"><title>{count} {outcome}</title></rect>'
            )
        self._y += _TALL
        for number, (outcome, colour) in enumerate(_ANSWERS.items()):
            self._parts.append(
                f'<text x="{_LEFT + number * 90}" y="{self._y + 12}" class="s" fill="{colour}">'
                f"{outcome}</text>"
            )

    def save(self, path: Path) -> None:
        height, width = self._y + 30, _LEFT + _WIDTH + 20
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">'
            "<style>text{font:12px sans-serif}.s{font-size:10px}</style>"
            '<rect width="100%" height="100%" fill="white"/>' + "\n".join(self._parts) + "</svg>\n",
            encoding="utf-8",
        )

    def _label(self, text: str) -> None:
        self._parts.append(f'<text x="6" y="{self._y}">{escape(text)}</text>')


def _phases(marks: list[Mark], last: int) -> list[Span]:
    return list(_spans([(m.facts["phase"], m.at) for m in marks if m.kind == "phase"], last))


def _reads(marks: list[Mark], last: int) -> list[Span]:
    return list(_spans([(m.facts["reads"], m.at) for m in marks if m.kind == "phase"], last))


def _downs(marks: list[Mark], last: int) -> list[Span]:
    states = [(mark.facts["state"], mark.at) for mark in marks if mark.kind == "server"]
    return [span for span in _spans(states, last) if span[0] == "down"]


def _spans(states: list[tuple[str, int]], last: int) -> Iterator[Span]:
    ends = [at for _, at in states[1:]] + [last]
    for (name, begin), end in zip(states, ends, strict=False):
        yield name, begin, end


def _faults(marks: list[Mark], last: int) -> Iterator[Span]:
    ends = {mark.facts["number"]: mark.at for mark in marks if mark.kind == "fault ends"}
    for mark in marks:
        if mark.kind == "fault begins":
            yield mark.facts["name"], mark.at, ends.get(mark.facts["number"], last)
