#!/usr/bin/env python3
"""AWQ and SmoothQuant written from their papers in float64 NumPy, against nibble's: on small random
blocks the same alpha has to win, or one whose loss is as low up to rounding; s has to be the same
to 1e-5, and codes to the last one that is not a near tie.

    scripts/oracle_awq.py BUILD/tests/test_awq BUILD/tests/test_smoothquant

The programs print cases with --cases: one JSON object a line, a point of a block, with its weights,
the statistics of its inputs, and what nibble made of them.
"""
import json
import subprocess
import sys

import numpy as np


def bf16(x):
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(float)


def quantize(w, bits, group, symmetric):
    """Round to nearest as compressed-tensors has it, scales in BF16: values, codes, x / scale."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    g = w.reshape(w.shape[0], -1, group)
    lo, hi = np.minimum(g.min(-1), 0), np.maximum(g.max(-1), 0)
    wanted = np.maximum(-lo, hi) / ((high - low) / 2) if symmetric else (hi - lo) / (high - low)
    scale = bf16(np.where(wanted > 0, wanted, 1))
    zero = np.zeros_like(scale) if symmetric else np.clip(np.rint(low - lo / scale), low, high)
    t = g / scale[..., None]
    code = np.clip(np.rint(t) + zero[..., None], low, high)
    value = (code - zero[..., None]) * scale[..., None]
    return value.reshape(w.shape), code.reshape(w.shape), t.reshape(w.shape)


def shared(v, case, how):
    """Channels of the heads that one value head feeds."""
    if case["shared"] == 1:
        return v
    v = v.reshape(-1, case["shared"], case["head_dim"])
    return np.broadcast_to(how(v, axis=1, keepdims=True), v.shape).reshape(-1)


def centred(s):
    return s / np.sqrt(s.max() * s.min())


def awq(case, ws, symmetric):
    """{name: (loss, s)}."""
    n = case["n"]
    h = np.array(case["h"]).reshape(n, n)
    power = [np.einsum("ri,ij,rj", w, h, w) for w in ws]
    x = shared(np.array(case["mean_abs"]), case, np.mean)
    share = np.zeros(n)
    for w in ws:
        g = np.abs(w).reshape(w.shape[0], -1, 32)
        share += (g / g.max(-1, keepdims=True)).reshape(w.shape).sum(0)
    share = shared(share, case, np.mean)

    def loss(s):
        total = 0
        for w, p in zip(ws, power):
            e = w - quantize(w * s, 4, 32, symmetric)[0] / s
            total += np.einsum("ri,ij,rj", e, h, e) / p
        return total / len(ws)

    tried = {"alpha 0": (loss(np.ones(n)), np.ones(n))}
    for i in range(1, 20):
        s = centred(x ** (i / 20))
        tried["alpha %.3g" % (i / 20)] = (loss(s), s)
    for i in range(20):
        s = centred(x ** (i / 20) / share ** (1 - i / 20))
        tried["alpha %.3g, duo" % (i / 20)] = (loss(s), s)
    return tried


def smoothquant(case, ws, _):
    n = case["n"]
    sample = np.array(case["sample"]).reshape(-1, n)
    x = shared(np.array(case["max_abs"]), case, np.max)
    most = shared(np.max([np.abs(w).max(0) for w in ws], axis=0), case, np.max)

    def loss(s):
        a = sample / s
        step = np.abs(a).max(1, keepdims=True) / 127
        a = np.rint(a / step) * step
        total = 0
        for w in ws:
            want = sample @ w.T
            got = a @ quantize(w * s, 8, n, True)[0].T
            total += ((got - want) ** 2).sum() / (want ** 2).sum()
        return total / len(ws)

    tried = {"as it is": (loss(np.ones(n)), np.ones(n))}
    for i in range(11):
        s = centred(x ** (i / 10) / most ** (1 - i / 10))
        tried["alpha %.3g" % (i / 10)] = (loss(s), s)
    return tried


def check(case, number, totals):
    n = case["n"]
    is_awq = case["transform"] == "awq"
    # Cases come by four, a block each; every other block of AWQ is symmetric.
    symmetric = not is_awq or number // 4 % 2 == 0
    ids = range(case["first"], case["first"] + case["count"])
    ws = [np.array(case["w_%d" % i]).reshape(-1, n) for i in ids]
    tried = (awq if is_awq else smoothquant)(case, ws, symmetric)
    best = min(tried, key=lambda k: tried[k][0])
    where = "%s, case %d, %s" % (case["transform"], number, case["point"])
    totals["points"] += 1
    # Roundings in binary32 turn a few codes: losses agree to what one code in hundreds can do.
    bound = 5e-3
    first = tried["alpha 0" if is_awq else "as it is"]
    assert abs(case["before"] / first[0] - 1) < bound, (where, case["before"], first[0])
    loss, s = tried[case["note"]]
    assert abs(case["after"] / loss - 1) < bound, (where, case["after"], loss)
    assert loss <= tried[best][0] * (1 + 2 * bound), (where, case["note"], best)
    totals["same choice"] += case["note"] == best
    got = np.array(case["s"])
    assert np.abs(got / s - 1).max() < 1e-5, (where, np.abs(got / s - 1).max())
    for i, w in zip(ids, ws):
        if "codes_%d" % i not in case:
            continue
        codes = np.array(case["codes_%d" % i]).reshape(w.shape)
        _, want, t = quantize(w * got, 4 if is_awq else 8, 32 if is_awq else n, symmetric)
        ties = (np.abs(np.abs(t - np.floor(t)) - 0.5) < 1e-4) & (np.abs(codes - want) <= 1)
        wrong = (codes != want) & ~ties
        assert not wrong.any(), (where, wrong.sum())
        totals["codes"] += codes.size
        totals["ties"] += int(((codes != want) & ties).sum())


def main():
    for program in sys.argv[1:]:
        lines = subprocess.run([program, "--cases"], capture_output=True, text=True, check=True).stdout
        totals = {"points": 0, "same choice": 0, "codes": 0, "ties": 0}
        for number, line in enumerate(x for x in lines.splitlines() if x.startswith("{")):
            check(json.loads(line), number, totals)
        assert totals["points"] > 0
        print(program.split("/")[-1], totals)


if __name__ == "__main__":
    main()
