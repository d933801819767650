#!/usr/bin/env python3
"""GPTQ, GPTAQ and Qronos written from their papers in float64 NumPy, against nibble's: prints how
many codes of random small matrices agree, and fails where one differs that is not a near tie.

    scripts/oracle_gptq.py BUILD/tests/test_gptq_encode

Here: the classic form, H^-1 = U^T U by Cholesky, columns updated one after the other, P of GPTAQ by
its definition, Qronos' first step by a plain solve. There: the LDL form of src/quant/encode/gptq.h. The
program named on the command line prints cases (tests/quant/encode/test_gptq_encode.c, with --cases):
one JSON object a line with H, D, W, the scales and the codes that nibble chose.

A code may differ where the value that was rounded lies within `bound` of the middle between two
levels: t is a sum in binary32 of at most n products e_i M_ik and its own value, so nibble's differs
from the exact one by at most (n + 3) 2^-24 (|w_k| + sum |e_i M_ik|), and by as much as the errors
before it do; a row is compared up to its first near tie.
"""
import json
import subprocess
import sys

import numpy as np


def nearest(t, scale):
    return np.clip(np.rint(t / scale), -8, 7)


def classic(w, h, d, scale, move, group):
    """Codes [rows][n], the values rounded [rows][n], and a bound of nibble's error in them."""
    rows, n = w.shape
    if move == "qronos":
        w = w + w @ d @ np.linalg.inv(h)
    u = np.linalg.cholesky(np.linalg.inv(h)).T  # H^-1 = U^T U, U upper
    assert np.allclose(u.T @ u @ h, np.eye(n), atol=1e-6)
    p = np.zeros((n, n))
    if move == "gptaq":
        p = np.triu(d @ u.T, 1) @ u
    q = np.zeros_like(w)
    ts = np.zeros_like(w)
    t = w.copy()
    size = np.abs(w)
    for k in range(n):
        ts[:, k] = t[:, k]
        s = scale[:, k // group]
        q[:, k] = nearest(t[:, k], s)
        value = s * q[:, k]
        error = (t[:, k] - value) / u[k, k]
        t[:, k + 1:] -= np.outer(error, u[k, k + 1:])
        t[:, k + 1:] += np.outer(w[:, k], p[k, k + 1:])
        size[:, k + 1:] += np.abs(np.outer(w[:, k] - value, u[k, k + 1:] / u[k, k]))
        size[:, k + 1:] += np.abs(np.outer(w[:, k], p[k, k + 1:]))
    return q, ts, size


def compare(case):
    n = case["n"]
    w, h, d = (np.array(case[k], dtype=np.float64).reshape(-1, n) for k in ("w", "h", "d"))
    scale = np.array(case["scale"], dtype=np.float64).reshape(w.shape[0], -1)
    code = np.rint(case["code"]).reshape(w.shape)
    h = (1 - case["shrink"]) * h + case["shrink"] * np.diag(np.diag(h))
    h += case["damp"] * np.mean(np.diag(h)) * np.eye(n)
    d = (1 - case["shrink"]) * case["strength"] * d
    q, t, size = classic(w, h, d, scale, case["move"], case["group"])
    gap = np.abs(np.abs(t / np.repeat(scale, case["group"], axis=1)) % 1 - 0.5)
    # Cond(H) multiplies what a move rounds: w D is summed in binary32 before it is solved.
    slack = 1 if case["move"] == "gptq" else np.linalg.cond(h)
    bound = (n + 3) * 2.0**-24 * slack * size / np.repeat(scale, case["group"], axis=1)
    same, ties = 0, 0
    for r in range(w.shape[0]):
        for k in range(n):
            if q[r, k] == code[r, k]:
                same += 1
                continue
            if gap[r, k] > bound[r, k]:
                raise SystemExit(f"{case['name']}: row {r}, column {k}: {code[r, k]}, and "
                                 f"{q[r, k]:g} by the papers, for {t[r, k]:g}")
            ties += 1
            break
    return same, ties


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    lines = subprocess.run([sys.argv[1], "--cases"], check=True, capture_output=True,
                           text=True).stdout.splitlines()
    total = 0
    for line in lines:
        if not line.startswith("{"):
            continue
        case = json.loads(line)
        same, ties = compare(case)
        total += same
        print(f"{case['name']}: {same} codes agree, {ties} rows end in a near tie")
    if total < 1000:
        raise SystemExit(f"only {total} codes were compared")


if __name__ == "__main__":
    main()
