"""``python -m sagastore_server`` is the ``sagastore-server`` command.

For ``-m``, Python searches the working folder for modules before all others, so a file such as
``asyncio.py`` there would run as part of the server. This module ends that, except for the few
modules that Python has imported before. The command ``sagastore-server`` and ``python -P -m`` do
not search the working folder at all.
"""

import sys
from os import path

if __name__ == "__main__":
    if not sys.flags.safe_path:
        working = sys.path.pop(0)
        # As in a checkout, where `server` is the working folder.
        if path.dirname(path.dirname(__file__)) == working:  # noqa: PTH120 - an import could be that of a planted file
            sys.path.append(working)

    from sagastore_server.cli.main import main

    main()
