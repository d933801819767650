#!/bin/sh
# Builds nibble with each planted fault of tests/fault/fault.c in turn: `nibble verify` has to fail,
# and to name the operation that is at fault. Only one file differs from one build to the next.
#
# BUILD may be any build folder, and is without a fault again at the end.
#
#   scripts/check_faults.sh [BUILD]
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/fault}
faults=$(sed -n 's/^FAULT plant_\([a-z0-9_]*\)(.*/\1/p' tests/fault/fault.c)
[ -n "$faults" ] || {
    echo "check_faults.sh found no fault in tests/fault/fault.c"
    exit 1
}
[ -f "$build/CMakeCache.txt" ] ||
    cmake -S . -B "$build" -G Ninja --log-level=WARNING -DNIBBLE_TESTS=OFF -DNIBBLE_BENCH=OFF >/dev/null
plant() { # plant FAULT, or nothing
    cmake "$build" --log-level=WARNING -DNIBBLE_PLANT_FAULT="$1" >/dev/null
    cmake --build "$build" --target nibble >/dev/null
}
trap 'plant ""' EXIT
for fault in $faults; do
    plant "$fault"
    python3 tests/fault/check.py "$build/nibble" "$fault"
done
