"""``python -m sagastore_server`` is the ``sagastore-server`` command."""

from sagastore_server.cli.main import main

if __name__ == "__main__":
    main()
