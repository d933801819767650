#!/bin/sh
# The whole job on a real model: fetch it, make an original of it, quantize that seven ways, measure what
# each cost, show the results as a table and a page, and ask one of them a question.
#
#   scripts/demo.sh [build/release/nibble]
#
# Results go to demo/. DEMO_WINDOWS sets how many windows of 512 tokens are scored (default 32),
# DEMO_TEXT another text to score, DEMO_CALIB another one to learn from.
set -eu
cd "$(dirname "$0")/.."
nibble=${1:-build/release/nibble}
windows=${DEMO_WINDOWS:-32}
out=demo
start=$(date +%s)

say() {
    printf '\n== %s\n' "$*"
}

say "the model"
model=$(scripts/fetch_model.sh "$nibble")
echo "$model"

mkdir -p "$out"
rm -f "$out"/*.jsonl

# The text that perplexity is usually quoted for, where it is; else the project's own documents,
# which are always there and say something else.
text=${DEMO_TEXT:-../shared/data/wikitext2-test.raw.txt}
if [ ! -s "$text" ]; then
    text=$out/text.txt
    cat README.md CONTRIBUTING.md docs/*.md LICENSE src/*/*.h >"$text"
    echo "WikiText-2 is not here: scoring the project's own documents and headers instead"
    echo "(set DEMO_TEXT=FILE for another text)"
fi

# What the calibrated one learns from is never what is scored.
calib=${DEMO_CALIB:-../shared/data/calib-c4.txt}
if [ ! -s "$calib" ]; then
    calib=$out/calib.txt
    cat src/*/*.c >"$calib"
fi

say "an ordinary BF16 folder: the original that everything is compared with"
"$nibble" convert "$model" -o "$out/original" --to hf --dtype bf16 --force

# LABEL SCHEME OUTPUT [OPTION...]
variants="W8A8 W8A8 w8a8
W8A16 W8A16 w8a16
W4A16:g32 W4A16:g32 w4a16-g32
W4A16:g64 W4A16:g64 w4a16-g64
W4A8:g64 W4A8:g64 w4a8-g64
Q4_0 Q4_0 q4_0.gguf
IQ4_NL,calibrated IQ4_NL iq4_nl.gguf --method qronos --calib-samples 16 --calib-len 512"

say "seven smaller ones; the last one learns from $calib, which takes a minute"
echo "$variants" | while read -r label scheme file options; do
    echo "$label"
    case $options in
        *--method*) set -- --calib "$calib" --check 0 ;;
        *) set -- ;;
    esac
    # shellcheck disable=SC2086 # options are words
    "$nibble" quantize "$out/original" -o "$out/$file" --scheme "$scheme" $options "$@" --force --quiet
done

# All are scored side by side, so that the original, which is the slowest, runs only once.
set -- "$out/original" "$model"
labels="--name original --name published"
while read -r label scheme file _; do
    set -- "$@" "$out/$file"
    labels="$labels --name $label"
done <<END
$variants
END

say "what it cost: $windows windows of $text"
# shellcheck disable=SC2086 # labels are words
"$nibble" eval "$@" $labels --base "$out/original" --text "$text" --windows "$windows" --json >"$out/eval.jsonl"

say "how fast they are here"
bench() { # bench LABEL MODEL: a process of its own, so that the peak of memory is this model's
    "$nibble" bench "$2" --name "$1" --repeat 3 --batch none --json --quiet >>"$out/bench.jsonl"
}
bench original "$out/original"
bench published "$model"
while read -r label scheme file _; do
    bench "$label" "$out/$file"
done <<END
$variants
END

say "results"
"$nibble" report "$out/eval.jsonl" "$out/bench.jsonl" -o "$out/report.html" --title "SmolLM2-135M-Instruct" --force
"$nibble" report "$out/eval.jsonl" "$out/bench.jsonl"

say "a question for W8A16"
question="What is the capital of France?"
echo "> $question"
"$nibble" chat "$out/w8a16" --message "$question" --max-tokens 80 --quiet

echo
echo "The page is $out/report.html. This took $(($(date +%s) - start)) seconds."
