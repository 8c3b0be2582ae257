#!/bin/sh
# Generates the protocol code from protos/ into OUT.
# usage: generate.sh VENV OUT
set -eu

venv=$1
out=$2
mkdir -p "$out"
# The plugins are found on the path.
PATH="$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -I protos \
    --python_out="$out" --mypy_out="quiet:$out" \
    --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" \
    protos/sagastore/v1/*.proto
