#!/bin/sh
# The checks of the tree catch the faults they are for: a check that accepts everything is worse
# than none.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failed=0
expect() { # expect accepted|refused WHAT COMMAND...
    want=$1
    what=$2
    shift 2
    got=accepted
    "$@" >"$tree/log" 2>&1 || got=refused
    if [ "$got" != "$want" ]; then
        echo "$what: $got, not $want"
        cat "$tree/log"
        failed=1
    fi
}

layers="$root/scripts/check_layers.sh $tree"
mkdir -p "$tree/src/base" "$tree/src/kernel" "$tree/src/cli" "$tree/src/text" "$tree/src/model" \
    "$tree/src/quant/encode" "$tree/src/quant/walk"
# shellcheck disable=SC2086 # a command and its argument
{
    expect refused "a tree without includes" $layers
    echo '#include "base/alloc.h"' >"$tree/src/kernel/gemm.c"
    echo '#include "kernel/gemm.h"' >"$tree/src/cli/main.c"
    echo '#include "base/status.h"' >"$tree/src/base/alloc.h"
    expect accepted "arrows that point down" $layers
    echo '  #  include "kernel/gemm.h"' >"$tree/src/base/arena.c"
    expect refused "base including kernel" $layers
    rm "$tree/src/base/arena.c"
    echo '#include "model/model.h"' >"$tree/src/text/bpe.c"
    expect refused "a folder including its neighbour on the same level" $layers
    echo '#include "misc/utils.h"' >"$tree/src/text/bpe.c"
    expect refused "a folder that is not on the map" $layers
    echo '#include "base/alloc.h"' >"$tree/src/text/bpe.c"
    echo '#include "quant/encode/rtn.h"' >"$tree/src/quant/walk/walk.c"
    echo '#include "quant/encode/rtn.h"' >"$tree/src/cli/main.c"
    expect accepted "arrows that point down among folders of a layer" $layers
    echo '#include "quant/walk/walk.h"' >"$tree/src/quant/encode/rtn.c"
    expect refused "a folder of a layer including one above it" $layers
    echo '#include "quant/calib/set.h"' >"$tree/src/quant/encode/rtn.c"
    expect refused "a folder of a layer including its neighbour" $layers
    echo '#include "quant/misc/set.h"' >"$tree/src/quant/encode/rtn.c"
    expect refused "a folder of a layer that is not on the map" $layers
    echo '#include "quant/scheme.h"' >"$tree/src/quant/encode/rtn.c"
    expect refused "a file beside the folders of a layer" $layers
}

mkdir -p "$tree/docs"
# shellcheck disable=SC2016 # the quotes are Markdown's
{
    expect refused "documents without paths" "$root/scripts/check_docs.sh" "$tree"
    echo 'See `src/kernel/gemm.c`, [the tour](docs/tour.md) and `src/*/x.c`.' >"$tree/README.md"
    echo 'Back to [the start](../README.md#top).' >"$tree/docs/tour.md"
    expect accepted "paths that exist" "$root/scripts/check_docs.sh" "$tree"
    echo 'See `src/kernel/gone.c`.' >>"$tree/docs/tour.md"
    expect refused "a path that is gone" "$root/scripts/check_docs.sh" "$tree"
    echo 'See `src/kernel/gemm.c`.' >"$tree/docs/tour.md"
    printf '# Formats\n\n### 8.6 Blocks\n' >"$tree/docs/formats.md"
    echo '/* formats.md 8.6 */' >"$tree/src/kernel/gemm.c"
    expect accepted "a section that exists" "$root/scripts/check_docs.sh" "$tree"
    echo '/* formats.md section 8 */' >"$tree/src/kernel/gemm.c"
    expect refused "a section that does not exist" "$root/scripts/check_docs.sh" "$tree"
}
exit "$failed"
