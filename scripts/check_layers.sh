#!/bin/sh
# The arrows of the map point one way: a folder of src/ includes itself and folders of a smaller
# number, no others; and so do the folders inside of one. Run from anywhere; the argument is the
# project's root.
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
    quant/weight | quant/inputs) echo 1 ;;
    quant/encode | quant/calib) echo 2 ;;
    quant/recipe | quant/transform) echo 3 ;;
    quant/plan) echo 4 ;;
    quant/pass | quant/write | quant/advise) echo 5 ;;
    quant/walk | quant/mix) echo 6 ;;
    *) echo 0 ;;
    esac
}
bad=0
checked=0
arrow() { # arrow FILE FROM TO
    checked=$((checked + 1))
    a=$(level "$2")
    b=$(level "$3")
    if [ "$2" != "$3" ] && { [ "$b" -ge "$a" ] || [ "$b" -eq 0 ] || [ "$a" -eq 0 ]; }; then
        echo "$1: $2 (level $a) includes $3 (level $b)"
        bad=1
    fi
}
for file in $(find src -name '*.[ch]' -o -name '*.def' -o -name '*.cu'); do
    from=${file#src/}
    from=${from%/*}
    for to in $(sed -n 's/^[[:space:]]*#[[:space:]]*include "\([a-z_/]*\)\/.*/\1/p' "$file"); do
        if [ "${from%%/*}" = "${to%%/*}" ]; then
            arrow "$file" "$from" "$to"
        else
            arrow "$file" "${from%%/*}" "${to%%/*}"
        fi
    done
done
[ "$checked" -gt 0 ] || { echo "check_layers.sh found no includes: is this the right folder?"; exit 1; }
[ "$bad" -eq 0 ] && echo "layers: $checked includes point the right way"
exit "$bad"
