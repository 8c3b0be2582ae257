"""Writes the requirements of a release: its own wheels and all dependencies, with hashes.

    python -m scripts.release_requirements dist

``dist`` has the wheels that `make build` made. The result, ``dist/requirements.txt``, installs
both distributions with their extras and refuses any other file, wherever it comes from:

    pip install --require-hashes --only-binary :all: --find-links dist -r dist/requirements.txt
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEPENDENCIES = ROOT / "constraints-release.txt"
EXTRAS = {"sagastore": "cli", "sagastore_server": "tracing"}
"""The extra of each distribution that a release installs."""


def main() -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the wheels are")
    folder = parser.parse_args().folder
    try:
        text = requirements(folder)
    except FileNotFoundError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    (folder / "requirements.txt").write_text(text, encoding="utf-8")
    return 0


def requirements(folder: Path) -> str:
    """Return the requirements of the release whose wheels are in ``folder``.

    Raises:
        FileNotFoundError: ``folder`` does not have exactly one wheel of each distribution.

    """
    own = [_requirement(folder, name, extra) for name, extra in EXTRAS.items()]
    return "".join(own) + DEPENDENCIES.read_text(encoding="utf-8")


def _requirement(folder: Path, name: str, extra: str) -> str:
    wheels = list(folder.glob(f"{name}-*.whl"))
    if len(wheels) != 1:
        raise FileNotFoundError(
            f"{folder} has {len(wheels)} wheels of {name}, not 1; run: make build"
        )
    version = wheels[0].name.split("-")[1]
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    project = name.replace("_", "-")
    return f"{project}[{extra}]=={version} \\\n    --hash=sha256:{digest}\n"


if __name__ == "__main__":
    sys.exit(main())
