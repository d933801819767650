#!/bin/sh
# Every C file is as clang-format would write it. Versions differ in details, so only the version
# that formats this tree judges it; another one says so and skips (77).
#
#   scripts/check_format.sh [--fix]
set -eu
cd "$(dirname "$0")/.."
want=14
command -v clang-format >/dev/null 2>&1 || {
    echo "SKIP: clang-format is not installed"
    exit 77
}
have=$(clang-format --version | sed 's/.*version \([0-9]*\).*/\1/')
if [ "$have" != "$want" ]; then
    echo "SKIP: clang-format is version $have, the tree is formatted with $want"
    exit 77
fi
if [ "${1:-}" = --fix ]; then
    mode=-i
else
    mode="--dry-run -Werror"
fi
# shellcheck disable=SC2086 # two words
git ls-files -z '*.c' '*.h' | xargs -0 -r clang-format $mode
