"""The documentation: generated pages are current, links resolve, reasons are listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sagastore_server.rpc import server, storage_service
from sagastore_server.rpc.admission import Limits
from scripts.write_reference import FOLDER, pages

ROOT = Path(__file__).parents[2]
FOLDERS = ("client", "deploy", "docs", "protos", "scripts", "server", "tests", "tools")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
MENTION = re.compile(r"(?<![\w/.])docs/[\w/-]+\.(?:md|sql|svg|png)")


def files(*suffixes: str) -> list[Path]:
    """Return the files of the repository with one of ``suffixes``."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    found += ROOT.iterdir()
    return [path for path in found if path.suffix in suffixes and path.is_file()]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of ``page``."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocker_reasons() -> set[str]:
    """Return every reason that the server's code gives to a `Blocker` as a literal."""
    found = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Blocker" and node.args:
                reason = node.args[0]
                if isinstance(reason, ast.Constant):
                    found.add(str(reason.value))
    return found


@pytest.mark.parametrize("name", ["cli.md", "errors.md"])
def test_generated_page_is_current(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "run: make docs"


def test_links_between_pages_resolve() -> None:
    broken = []
    for page in files(".md"):
        for target, anchor in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
            if "://" in target:
                continue
            path = (page.parent / target).resolve() if target else page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert broken == []


def test_mentioned_pages_exist() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(".py", ".sql", ".md", ".yaml", ".yml", ".toml", ".service")
        for name in MENTION.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_every_blocker_is_documented() -> None:
    page = (FOLDER / "migration.md").read_text(encoding="utf-8")
    assert {reason for reason in blocker_reasons() if f"`{reason}`" not in page} == set()


def test_every_alert_has_a_section_of_the_runbook() -> None:
    """`runbook_url` names a heading that exists; each section has the same three parts."""
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    named = re.split(r"^ *- alert: (\w+)$", rules, flags=re.MULTILINE)[1:]
    alerts = {
        name: re.findall(r"^ *runbook_url: (\S+)$", rule, re.MULTILINE)
        for name, rule in zip(named[::2], named[1::2], strict=True)
    }
    assert len(alerts) > 20
    assert alerts == {name: [f"docs/how-to/alerts.md#{name.lower()}"] for name in alerts}
    page = ROOT / "docs/how-to/alerts.md"
    sections = dict(
        re.findall(
            r"^### (\w+)\n(.*?)(?=^##|\Z)",
            page.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
    )
    assert list(sections) == list(alerts)
    for name, text in sections.items():
        parts = re.findall(r"^- \*\*(.*?):\*\* ", text, re.MULTILINE)
        assert parts == ["Meaning", "Check", "Do"], name


def test_documented_fixed_limits_are_those_of_the_code() -> None:
    pending = server._MAX_PENDING
    options = dict(server._channel_options(Limits()))
    assert options["grpc.server.max_pending_requests"] == pending
    both = (f"{pending:,}", f"{options['grpc.server.max_pending_requests_hard_limit']:,}")
    for name in ("docs/how-to/operations.md", "docs/reference/configuration.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert all(number in text for number in both), name
        assert f"At most {storage_service._SEARCHES} searches run at a time" in text, name
