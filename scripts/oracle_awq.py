#!/usr/bin/env python3
"""AWQ and SmoothQuant written from their papers in float64 NumPy, against nibble's, on small random
blocks. Needs NumPy; not part of the tests. Fails with the first point that differs.

    cmake --build BUILD --target test_awq test_smoothquant
    scripts/oracle_awq.py BUILD/tests/test_awq BUILD/tests/test_smoothquant

The programs print cases with --cases: one JSON object a line, a point of a block, with its weights,
the statistics of its inputs, and what nibble made of them. SmoothQuant is
the search over alpha of the paper; nibble's `balance` is not its, and left out of the cases. What
has to hold:

  alpha   The same one wins, or one whose loss here is as low up to 1 %: nibble's binary32 turns
          a code of a near tie, and one code among the hundreds of a small matrix moves a loss by
          less than 0.5 %, its own and the winner's. Losses themselves agree to that.
  s       To 1e-5: exp and log in binary64, divided out of weights in binary32 (two roundings,
          2^-23), from statistics that were printed in full.
  codes   Each one, where x / scale is not within 1e-4 of the middle between two levels: the
          quotient is rounded once, 2^-24 of at most 128.
  clip    AWQ's second half, each group of each row (q and k stay as they are): the ratio that nibble clips by has a loss
          within B of the least, B = (32 + 8) 2^-24 sum |e_i| |h_ij| |e_j|, what sums of 32 x 32
          products can differ by in binary32; and all values are the clipped ones to 2^-22.
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


def clip(case, s, w, got, symmetric, where, totals):
    """Groups of 32: got is w clamped to the ratio of 1, 0.95 ... 0.5 of least e h e^T."""
    n = case["n"]
    h = np.array(case["h"]).reshape(n, n) / np.outer(s, s)
    w, got = (x.reshape(w.shape[0], -1, 32) for x in (w, got))
    lo, hi = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
    if symmetric:
        hi = np.maximum(-lo, hi)
        lo = -hi
    blocks = np.stack([h[i:i + 32, i:i + 32] for i in range(0, n, 32)])
    losses, sizes, apart = [], [], []
    for i in range(11):
        ratio = 1 - 0.05 * i
        clamped = np.clip(w, (lo * ratio)[..., None], (hi * ratio)[..., None])
        e = w - quantize(clamped.reshape(w.shape[0], -1), 4, 32, symmetric)[0].reshape(w.shape)
        losses.append(np.einsum("rgi,gij,rgj->rg", e, blocks, e))
        sizes.append(np.einsum("rgi,gij,rgj->rg", np.abs(e), np.abs(blocks), np.abs(e)))
        apart.append(np.abs(clamped - got).max(-1) / np.abs(w).max(-1))
    losses, sizes, apart = np.array(losses), np.array(sizes), np.array(apart)
    taken = apart.argmin(0)
    assert apart.min(0).max() < 2.0**-22, (where, apart.min(0).max())
    # A ratio so near to 1 that nothing is clamped is the one before it.
    lost = np.take_along_axis(losses, taken[None], 0)[0] - losses.min(0)
    bound = 2 * (32 + 8) * 2.0**-24 * sizes.max(0)
    assert (lost <= bound).all(), (where, float((lost - bound).max()))
    totals["spans"] += taken.size
    totals["clipped"] += int((taken > 0).sum())


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
        if is_awq:
            scaled, clipped = (np.array(case["%s_%d" % (x, i)]).reshape(w.shape)
                               for x in ("open", "clip"))
            if i < 2:  # the paper leaves q and k alone
                assert (scaled == clipped).all(), where
            else:
                clip(case, got, scaled, clipped, symmetric, where, totals)


def main():
    for program in sys.argv[1:]:
        lines = subprocess.run([program, "--cases"], capture_output=True, text=True, check=True).stdout
        totals = {"points": 0, "same choice": 0, "codes": 0, "ties": 0, "spans": 0, "clipped": 0}
        for number, line in enumerate(x for x in lines.splitlines() if x.startswith("{")):
            check(json.loads(line), number, totals)
        assert totals["points"] > 0 and totals["codes"] > 1000
        assert ("awq" in program) == (totals["clipped"] > 100)
        print(program.split("/")[-1], totals)


if __name__ == "__main__":
    main()
