#!/bin/sh
# Documents name files that exist: every `path` under a folder of this tree, in code quotes or as a
# link, in any *.md. Paths with a * or <> or {} in them are patterns and are left alone. And the
# sections of docs/formats.md that comments cite exist.
set -eu
cd "${1:-$(dirname "$0")/..}"
list=$(mktemp)
trap 'rm -f "$list"' EXIT
for doc in *.md docs/*.md; do
    [ -f "$doc" ] || continue
    # `src/base/file.c`, and [text](docs/tour.md), relative to the root or to the document
    {
        grep -oE '`(src|include|docs|scripts|tests|bench|cmake|\.ci)/[A-Za-z0-9_./-]+`' "$doc" | tr -d '`'
        grep -oE '\]\([A-Za-z0-9_./-]+(#[a-z0-9-]*)?\)' "$doc" | sed 's/^](//; s/[#)].*//'
    } | sort -u | sed "s|^|$doc |" >>"$list" || true
done
checked=0
bad=0
while read -r doc path; do
    checked=$((checked + 1))
    if [ ! -e "$path" ] && [ ! -e "$(dirname "$doc")/$path" ]; then
        echo "$doc names $path, which does not exist"
        bad=1
    fi
done <"$list"
# Sections of docs/formats.md that the source cites are there.
if [ -f docs/formats.md ]; then
    for section in $(grep -rhoE 'formats\.md (section )?[0-9]+(\.[0-9]+)?' src include tests/*/*.c tests/*/*/*.c 2>/dev/null |
        sed 's/.* //' | sort -u); do
        if ! grep -qE "^#+ $section " docs/formats.md; then
            echo "the source cites section $section of docs/formats.md, which does not exist"
            bad=1
        fi
    done
fi
[ "$checked" -gt 0 ] || {
    echo "check_docs.sh found no paths: is this the right folder?"
    exit 1
}
[ "$bad" -eq 0 ] && echo "docs: $checked paths exist"
exit "$bad"
