#!/bin/sh
# Runs the tests of a build folder and ends with the line "N passed, N failed", or with
# "N passed, N failed, N skipped". More arguments go to ctest.
#
#   scripts/test.sh build/release [-LE model]
set -eu
build=${1:-build/release}
[ $# -eq 0 ] || shift
cd "$(dirname "$0")/.."

# Tests of the real model use NIBBLE_MODEL, or the copy that `nibble pull` left in its cache; they
# say SKIP without either.
if [ -z "${NIBBLE_MODEL:-}" ]; then
    model=$(scripts/fetch_model.sh --cached) && NIBBLE_MODEL=$model && export NIBBLE_MODEL
fi

# One more than there are processors: some tests wait for time to pass.
results=$(mktemp)
trap 'rm -f "$results"' EXIT
status=0
ctest --test-dir "$build" --output-on-failure --parallel "$(($(nproc) + 1))" --no-tests=error \
    --output-junit "$results" "$@" || status=$?

# <testsuite ... tests="N" failures="N" disabled="N" skipped="N" ...>
count() {
    tr '\n\t' '  ' <"$results" | sed 's/<testcase.*//' | tr ' ' '\n' | sed -n 's/^'"$1"'="\([0-9]*\)".*/\1/p'
}
tests=$(count tests)
failed=$(count failures)
skipped=$(($(count skipped) + $(count disabled)))
if [ -z "$tests" ] || [ "$tests" -eq 0 ]; then
    echo "test.sh: no test ran" >&2
    exit 1
fi
passed=$((tests - failed - skipped))
if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ] || status=1
exit "$status"
