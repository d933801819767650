#!/bin/sh
# The table of figures: prefill of 512 tokens, decode, and decode of 16 sequences, of real shapes
# with random weights, as Markdown. Medians over rounds, in which all rows take turns.
#
#     scripts/bench.sh [BUILD]                        BUILD: build/release
#     ROUNDS=3 THREADS=2 ROWS='1B' scripts/bench.sh   ROWS: only rows whose name matches (grep -E)
#
# Peers run in between, on files of the same shapes, where they are given:
#
#     PEER_BENCH=/path/to/llama-bench PEER_BATCHED=/path/to/llama-batched-bench
#     PEER_135M=s135-q4_0.gguf PEER_1B=l1b-q4_0.gguf PEER_1B_8BIT=l1b-q8_0.gguf PEER_7B=l7b-q4_0.gguf
#     PEER_BENCH_AVX2, PEER_BATCHED_AVX2: builds without AVX-512, for the rows with --isa avx2
#     PEER_FLAGS: more flags for all of them
#
# MODEL_135M=FILE takes that model in the place of the shape in the rows of SmolLM2-135M.
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/release}
nibble=$build/nibble
rounds=${ROUNDS:-3}
threads=${THREADS:-$(nproc)}
[ -x "$nibble" ] || {
    echo "bench.sh: there is no $nibble" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

if [ -n "${MODEL_135M:-}" ]; then small=$MODEL_135M; else small="--shape smollm2-135m"; fi
# name; what nibble bench is told; the peer's model; which build of the peer
cat >"$work/rows" <<EOF
SmolLM2-135M, 4-bit; $small; ${PEER_135M:-}; native
Llama-3.2-1B shape, 4-bit g32; --shape llama3.2-1b --scheme Q4_0; ${PEER_1B:-}; native
Llama-3.2-1B shape, 4-bit g128; --shape llama3.2-1b --scheme W4A16:g128 --compute i8; ; native
Llama-3.2-1B shape, 8-bit; --shape llama3.2-1b --scheme Q8_0; ${PEER_1B_8BIT:-}; native
Llama-2-7B shape, 4-bit g128; --shape llama2-7b --scheme W4A16:g128 --compute i8; ${PEER_7B:-}; native
SmolLM2-135M, 4-bit, INT8 cache: prefill of 4096, decode behind it; $small --kv int8 --prompt 4096 --depth 0,4096 --batch none; ${PEER_135M:-}; depth
SmolLM2-135M, 4-bit, AVX2; $small --isa avx2; ${PEER_135M:-}; avx2
Llama-3.2-1B shape, 4-bit g32, AVX2; --shape llama3.2-1b --scheme Q4_0 --isa avx2; ${PEER_1B:-}; avx2
EOF
if [ -n "${ROWS:-}" ]; then
    grep -E "$ROWS" "$work/rows" >"$work/chosen" || true
    mv "$work/chosen" "$work/rows"
fi
[ -s "$work/rows" ] || {
    echo "bench.sh: no row's name matches ROWS='$ROWS'" >&2
    exit 1
}

# peer NUMBER MODEL BUILD: prefill and decode, then the batch; what fails leaves a gap in the table. Some
# builds write the batch's table to standard error.
peer() {
    bench=${PEER_BENCH:-} batched=${PEER_BATCHED:-}
    if [ "$3" = avx2 ]; then bench=${PEER_BENCH_AVX2:-} batched=${PEER_BATCHED_AVX2:-}; fi
    [ -n "$2" ] || return 0
    if [ "$3" = depth ]; then
        # shellcheck disable=SC2086
        [ -z "$batched" ] || $batched -m "$2" -c 4640 -npp 4096 -ntg 32 -npl 1 -t "$threads" \
            ${PEER_FLAGS:-} 2>&1 | tee -a "$work/log" | grep '^|' >>"$work/peer-depth.$1" || true
        return 0
    fi
    # shellcheck disable=SC2086
    [ -z "$bench" ] || $bench -m "$2" -p 512 -n 64 -t "$threads" -r 3 -o json ${PEER_FLAGS:-} \
        2>>"$work/log" | tr -d '\n' >>"$work/peer-bench.$1" || true
    [ -z "$bench" ] || echo >>"$work/peer-bench.$1"
    # shellcheck disable=SC2086
    [ -z "$batched" ] || $batched -m "$2" -c 2560 -npp 128 -ntg 32 -npl 16 -t "$threads" \
        ${PEER_FLAGS:-} 2>&1 | tee -a "$work/log" | grep '^|' >>"$work/peer-batch.$1" || true
}

round=1
while [ "$round" -le "$rounds" ]; do
    n=0
    while IFS=';' read -r name flags model kind; do
        n=$((n + 1))
        echo "round $round of $rounds: $name" >&2
        batch='--batch 16'
        case "$flags" in *--batch*) batch= ;; esac
        # shellcheck disable=SC2086
        "$nibble" bench $flags $batch --threads "$threads" --repeat 3 --json --quiet </dev/null \
            >>"$work/nibble.$n" || true
        peer "$n" "$(echo "$model" | tr -d ' ')" "$(echo "$kind" | tr -d ' ')" </dev/null
    done <"$work/rows"
    round=$((round + 1))
done

python3 - "$work" "$threads" "$rounds" <<'EOF'
import json
import os
import statistics
import sys

work, threads, rounds = sys.argv[1:]


def lines(name):
    path = os.path.join(work, name)
    return open(path).read().splitlines() if os.path.exists(path) else []


def documents(name):
    found = []
    for line in lines(name):
        try:
            found.append(json.loads(line))
        except ValueError:
            pass  # the run failed, and said why
    return found


def batched(name, column):
    """A column of llama-batched-bench's rows of numbers: 5 is prefill, 7 is decode."""
    values = []
    for line in lines(name):
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if len(cells) >= 10 and cells[0].isdigit():
            values.append(float(cells[column]))
    return values


def peer_bench(name, key):
    return [r["avg_ts"] for runs in documents(name) for r in runs if r[key] > 0]


def cell(values, shares=()):
    if not values:
        return "-"
    text = "%.*f" % (0 if statistics.median(values) >= 100 else 1, statistics.median(values))
    return text + (" (%.0f %%)" % (100 * statistics.median(shares)) if shares else "")


rows, limits, has_peer, isas = [], [], False, []
for n, row in enumerate(lines("rows"), 1):
    runs = documents("nibble.%d" % n)
    limits += [r["limits"] for r in runs if "AVX2" not in row]
    isas += [r["isa"] for r in runs if "AVX2" not in row]
    batch = [r for r in runs if r["batch_decode_tok_s"].get("16")]
    depth = "depth" in row.split(";")[3]
    first = [r for r in runs if r["depth"] == 0]
    last = [r for r in runs if r["depth"] == 4096] if depth else first
    peer = (batched("peer-depth.%d" % n, 5) if depth else peer_bench("peer-bench.%d" % n, "n_prompt"),
            batched("peer-depth.%d" % n, 7) if depth else peer_bench("peer-bench.%d" % n, "n_gen"),
            batched("peer-batch.%d" % n, 7))
    has_peer = has_peer or any(peer)
    rows.append([row.split(";")[0],
                 cell([r["prefill_tok_s"] for r in first], [r["prefill_peak_share"] for r in first]),
                 cell([r["decode_tok_s"] for r in last], [r["decode_read_share"] for r in last]),
                 cell([r["batch_decode_tok_s"]["16"] for r in batch],
                      [r["batch_peak_share"]["16"] for r in batch])] + [cell(p) for p in peer])
heads = ["tok/s", "prefill 512 (of the multiply peak)", "decode 1 (of the read bandwidth)",
         "decode 16 sequences, total (of the multiply peak)", "peer: prefill", "decode 1", "decode 16"]
width = 7 if has_peer else 4
print("| " + " | ".join(heads[:width]) + " |")
print("|---" * width + "|")
for row in rows:
    print("| " + " | ".join(row[:width]) + " |")
if limits:
    m = lambda key: statistics.median(l[key] for l in limits)
    print("\n%s threads, %s, medians of %s rounds. This machine, in the same runs: %.0f int8 Gop/s (%s), "
          "%.0f Gflop/s, read %.1f GB/s." % (threads, isas[0], rounds, m("int8_gop_s"),
                                             limits[0]["int8_unit"], m("fma_gflop_s"), m("read_gb_s")))
if not any(row[1] != "-" for row in rows):
    sys.exit("bench.sh: no row could be measured")
EOF
