#!/bin/sh
# Builds nibble with each planted fault of tests/fault/fault.c in turn: `nibble verify` has to fail,
# and to name the operation that is at fault. Only one file differs from one build to the next.
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
launcher=
command -v ccache >/dev/null && launcher=-DCMAKE_C_COMPILER_LAUNCHER=ccache
for fault in $faults; do
    # shellcheck disable=SC2086
    cmake -S . -B "$build" -G Ninja --log-level=WARNING $launcher -DNIBBLE_TESTS=OFF \
        -DNIBBLE_BENCH=OFF -DNIBBLE_PLANT_FAULT="$fault" >/dev/null
    cmake --build "$build" --target nibble >/dev/null
    python3 tests/fault/check.py "$build/nibble" "$fault"
done
