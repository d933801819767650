#!/bin/sh
# Runs every bench of a build folder; each checks its results before it takes time.
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/release}
found=0
for bench in "$build"/bench/bench_*; do
    [ -f "$bench" ] && [ -x "$bench" ] || continue
    found=1
    echo "== $(basename "$bench")"
    "$bench"
done
[ "$found" -eq 1 ] || {
    echo "bench.sh: no bench was built under $build/bench" >&2
    exit 1
}
