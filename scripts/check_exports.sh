#!/bin/sh
# The shared library exports what include/nibble.h declares with NB_API, and nothing else.
#
#   scripts/check_exports.sh build/release/libnibble.so
set -eu
cd "$(dirname "$0")/.."
library=$1
declared=$(mktemp)
exported=$(mktemp)
trap 'rm -f "$declared" "$exported"' EXIT
# A declaration may span lines: join them, then take the word before its first parenthesis.
sed '/^#/d' include/nibble.h | tr '\n' ' ' | grep -oE 'NB_API [^;#]*\(' | sed -E 's/\(.*//; s/.*[ *]([a-z0-9_]+) *$/\1/' |
    sort -u >"$declared"
nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort -u >"$exported"
[ -s "$declared" ] || {
    echo "check_exports.sh found no NB_API in include/nibble.h"
    exit 1
}
if ! diff "$declared" "$exported" >/dev/null; then
    echo "declared (<) and exported (>) differ:"
    diff "$declared" "$exported" || true
    exit 1
fi
echo "exports: $(wc -l <"$exported") names, as declared"
