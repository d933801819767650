#!/bin/sh
# Prints the path of the model that the demo and some tests use, after fetching it if need be.
#
#   scripts/fetch_model.sh NIBBLE     `nibble pull`: cache, then the network
#   scripts/fetch_model.sh --cached   only where it already is; fails without a word otherwise
set -eu
cache=${NIBBLE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/nibble}
model=${NIBBLE_MODEL:-$cache/SmolLM2-135M-Instruct.Q4_1.gguf}
if [ ! -s "$model" ]; then
    [ "${1:---cached}" != --cached ] || exit 1
    "$1" pull smollm2-135m-instruct >&2
    model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
    [ -s "$model" ] || {
        echo "fetch_model.sh: nibble pull reported success, and $model is not there" >&2
        exit 1
    }
fi
echo "$model"
