#!/bin/sh
# Creates the virtual environment DIR, unless a working one exists.
# usage: make-venv.sh DIR
set -eu

dir=$1
if "$dir/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    exit 0
fi
python=$("$(dirname "$0")/find-python.sh")
echo "Making $dir with $("$python" --version)" >&2
"$python" -m venv --clear "$dir"
