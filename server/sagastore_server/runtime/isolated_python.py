"""Start of Python in a child process: isolated, with an environment without secrets.

The child

* has only the variables of `_VARIABLES` in its environment, hence no tokens and no passwords;
* runs the modules of Python and of the server, whatever the working folder contains: Python is
  isolated (``-I -S``), and searches its own library before the folders in which this process found
  its modules.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    # Where a Python that is not part of the system finds its libraries.
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
)
"""Environment variables of a child. A list of what is secret could not be complete: PostgreSQL,
OpenTelemetry and systemd have such variables too."""


def command(module: str, argument: int) -> list[str]:
    """Return the command that calls ``main(argument)`` of ``module``.

    Args:
        module: Full name of a module of the server.
        argument: For example the file descriptor of a pipe.

    """
    options = ["-I", "-S"]
    # Isolation ignores the variables for these two.
    if sys.dont_write_bytecode:
        options.append("-B")
    if sys.pycache_prefix:
        options += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    # The arguments after the number are the folders of modules. They come after the library of
    # Python, of which they replace nothing.
    start = (
        f"import sys; sys.path += sys.argv[2:]; from {module} import main; main(int(sys.argv[1]))"
    )
    # The package first, so that a child never runs another version of it.
    package = str(Path(__file__).parents[2])
    folders = [package, *(one for one in sys.path if Path(one).is_absolute())]
    return [sys.executable, *options, "-c", start, str(argument), *folders]


def environment() -> dict[str, str]:
    """Return the environment of a child."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}
