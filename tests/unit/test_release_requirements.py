"""The hashed pins of a release agree with constraints.txt, and a release installs nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.release_requirements import requirements

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
RELEASE, BUILD = "constraints-release.txt", "constraints-build.txt"
# What `make release-constraints` resolves.
NEEDED = {RELEASE: ("sagastore[cli]", "sagastore-server[tracing]"), BUILD: ("hatchling",)}
OWN = {"sagastore", "sagastore-server"}


def entries(name: str) -> list[list[str]]:
    """Return the packages of a constraints file: the pin, then its hashes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = text.replace(" \\\n    ", "\t").splitlines()
    return [line.split("\t") for line in lines]


def pins(name: str) -> dict[str, set[str]]:
    """Return the versions of each package in a constraints file."""
    found: dict[str, set[str]] = defaultdict(set)
    for pin, *_ in entries(name):
        requirement = Requirement(pin)
        found[canonicalize_name(requirement.name)].add(str(requirement.specifier))
    return found


def closure(roots: tuple[str, ...]) -> set[str]:
    """Return the packages that ``roots`` require here, by the metadata of what is installed."""
    pending, seen = [Requirement(root) for root in roots], set[str]()
    while pending:
        one = pending.pop()
        key = f"{canonicalize_name(one.name)}[{','.join(sorted(one.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        pending += [
            required
            for line in distribution(one.name).requires or ()
            for required in (Requirement(line),)
            if _applies(required, one.extras)
        ]
    return {key.partition("[")[0] for key in seen} - OWN


def _applies(required: Requirement, extras: set[str]) -> bool:
    return required.marker is None or any(
        required.marker.evaluate({"extra": extra}) for extra in ("", *extras)
    )


@pytest.mark.parametrize("name", [RELEASE, BUILD])
def test_release_pins_are_those_of_development(name: str) -> None:
    expected, found = pins("constraints.txt"), pins(name)
    assert found
    differing = {one: found[one] for one in found if not found[one] <= expected[one]}
    assert differing == {}, "run: make release-constraints"


@pytest.mark.parametrize("name", [RELEASE, BUILD])
def test_release_pins_have_hashes_and_nothing_else(name: str) -> None:
    for pin, *hashes in entries(name):
        assert PIN.fullmatch(pin), pin
        assert hashes, pin
        assert [one for one in hashes if not HASH.fullmatch(one)] == [], pin


@pytest.mark.parametrize("name", [RELEASE, BUILD])
def test_release_pins_cover_every_dependency(name: str) -> None:
    assert closure(NEEDED[name]) <= set(pins(name)), "run: make release-constraints"


def test_release_does_not_pin_development_tools() -> None:
    assert set(pins(RELEASE)) & {"pytest", "ruff", "mypy", "hatchling"} == set()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheels of both distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in ("client", "server"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=ROOT / source, check=True, capture_output=True, timeout=200)
    return folder


def install(text: str, wheels: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Install from ``wheels`` alone what the requirements ``text`` name."""
    folder.mkdir()
    (folder / "own.txt").write_text(text)
    options = ["--require-hashes", "--no-index", "--no-deps", "--disable-pip-version-check"]
    places = ["--find-links", str(wheels), "--target", str(folder / "target")]
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *places, "-r", str(folder / "own.txt")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_release_installs_its_own_wheels_only(wheels: Path, tmp_path: Path) -> None:
    """The requirements name both wheels, and a changed wheel does not install."""
    own, found, _ = requirements(wheels).partition("aiosqlite==")
    assert found
    done = install(own, wheels, tmp_path / "unchanged")
    assert done.returncode == 0, done.stderr
    assert {"sagastore", "sagastore_server"} <= {
        path.name for path in (tmp_path / "unchanged/target").iterdir()
    }
    (wheel,) = wheels.glob("sagastore-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.comment = b"changed"
    changed = install(own, wheels, tmp_path / "changed")
    assert changed.returncode != 0
    assert "DO NOT MATCH THE HASHES" in changed.stderr


def test_release_requirements_need_one_wheel_of_each(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="has 0 wheels of sagastore, not 1; run: make build"
    ):
        requirements(tmp_path)
