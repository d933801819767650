#!/bin/sh
# The arrows of the map point one way: a folder of src/ includes itself and folders of a smaller
# number, no others. Run from anywhere; the argument is the project's root.
set -eu
cd "${1:-$(dirname "$0")/..}"
level() {
    case "$1" in
    base) echo 1 ;;
    numeric | dist | report) echo 2 ;;
    kernel | store) echo 3 ;;
    text | model | load) echo 4 ;;
    eval) echo 5 ;;
    quant | train | engine) echo 6 ;;
    serve) echo 7 ;;
    cli) echo 8 ;;
    *) echo 0 ;;
    esac
}
bad=0
checked=0
for file in $(find src -name '*.[ch]' -o -name '*.def' -o -name '*.cu'); do
    from=$(echo "$file" | cut -d/ -f2)
    a=$(level "$from")
    for to in $(sed -n 's/^[[:space:]]*#[[:space:]]*include "\([a-z]*\)\/.*/\1/p' "$file"); do
        b=$(level "$to")
        checked=$((checked + 1))
        if [ "$from" != "$to" ] && { [ "$b" -ge "$a" ] || [ "$b" -eq 0 ] || [ "$a" -eq 0 ]; }; then
            echo "$file: $from (level $a) includes $to (level $b)"
            bad=1
        fi
    done
done
[ "$checked" -gt 0 ] || { echo "check_layers.sh found no includes: is this the right folder?"; exit 1; }
[ "$bad" -eq 0 ] && echo "layers: $checked includes point the right way"
exit "$bad"
