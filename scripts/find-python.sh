#!/bin/sh
# Prints the Python to build environments with: $PYTHON if it is set, else the
# first of the usual names that starts and is 3.11 or later. An existing name may not
# start (version managers put stubs on the path), so each is tried.
set -eu

no_venv=
for python in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        continue
    fi
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "$python"
        exit 0
    fi
    no_venv=${no_venv:-$python}
done

if [ -n "$no_venv" ]; then
    echo "error: $no_venv cannot make virtual environments: install its venv module" \
        "(Debian, Ubuntu: apt install python3-venv)" >&2
elif [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is not a working Python 3.11 or later" >&2
else
    echo "error: no Python 3.11 or later found;" \
        "install one, or name it: make PYTHON=/path/to/python" >&2
fi
exit 1
