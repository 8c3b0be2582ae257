#!/bin/sh
# Compares protos/ with the state before its latest change and fails if the change
# breaks clients of that state.
#
# usage: breaking.sh BUF [COMMIT]
#
# COMMIT is the state to compare with. The default is the point where this branch
# left origin/main; on main, HEAD if the working tree changes protos/, otherwise the
# parent of the latest commit that did. If there is no such commit (the first one, a
# shallow clone), the check passes.
set -eu

buf=$1
base=${2:-}

if ! git rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
    echo "breaking: no git history here, nothing to compare with"
    exit 0
fi

if [ -z "$base" ]; then
    base=$(git merge-base HEAD origin/main 2>/dev/null || true)
    if [ "$base" = "$(git rev-parse HEAD)" ]; then
        base=
    fi
fi

if [ -z "$base" ]; then
    if [ -n "$(git status --porcelain -- protos)" ]; then
        base=$(git rev-parse HEAD)
    else
        latest=$(git rev-list --first-parent --max-count=1 HEAD -- protos)
        base=$(git rev-parse --verify --quiet "$latest^" || true)
    fi
fi

if [ -z "$base" ] || [ -z "$(git ls-tree "$base" -- protos buf.yaml | sed -n 2p)" ]; then
    echo "breaking: no earlier commit with protos/, nothing to compare with"
    exit 0
fi

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$base" protos buf.yaml | tar -x -C "$before"
echo "breaking: comparing with $(git log -1 --format='%h %s' "$base")"
"$buf" breaking --against "$before"
