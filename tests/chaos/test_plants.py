"""Planted faults still apply to the current product."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Each in a fork of one process that has imported everything, so a patch stays in its process.
PUT_ALL = """
import importlib, json, os, pkgutil, sys, traceback
import sagastore_server
from tools.chaos import plants

for module in pkgutil.walk_packages(sagastore_server.__path__, "sagastore_server."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

def put(name):
    read, write = os.pipe()
    if not os.fork():
        said = ""
        try:
            plants.put(name)
            from sagastore_server.cli.main import main
            assert callable(main)
        except BaseException:
            said = traceback.format_exc()
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        said = told.read()
    os.wait()
    return said

names = [*plants.PLANTS, *plants.POWER_PLANTS]
json.dump({name: put(name) for name in names}, sys.stdout)
"""


def test_every_planted_fault_applies() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PUT_ALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    said: dict[str, str] = json.loads(done.stdout)
    assert len(said) >= 32
    assert {name: what for name, what in said.items() if what} == {}
