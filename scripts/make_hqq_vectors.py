#!/usr/bin/env python3
"""Recomputes tests/golden/hqq.json with the hqq package. Run by hand; needs torch and hqq 0.2.8.

    scripts/make_hqq_vectors.py

Each entry is one matrix as hqq quantizes and packs it: W_q, scale and zero as their bytes (hex),
and the values that hqq decodes from them, as the bytes of binary32. Scales and zero points are
rounded to 16 bits first, as a model of that type stores them; decoding is in binary32.
"""
import json
import pathlib

import torch
from hqq.core.quantize import Quantizer

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "hqq.json"

# name, nbits, rows, columns, group size, type of scales
ENTRIES = [
    ("w4_g64_bf16", 4, 6, 128, 64, torch.bfloat16),
    ("w4_g32_f16", 4, 3, 64, 32, torch.float16),
    ("w8_g64_f16", 8, 3, 64, 64, torch.float16),
    ("w3_g32_bf16", 3, 7, 96, 32, torch.bfloat16),
    ("w2_g32_f16", 2, 4, 96, 32, torch.float16),
    ("w5_g32_f16", 5, 2, 64, 32, torch.float16),
    ("w4_channel_f32", 4, 4, 40, 40, torch.float32),
]


def raw(t):
    return bytes(t.contiguous().flatten().view(torch.uint8).tolist()).hex()


def entry(nbits, rows, cols, group, dtype):
    w = torch.randn(rows, cols) * 0.05 + torch.randn(rows, 1) * 0.01
    w[0, 3] = 0.6  # an outlier
    q, meta = Quantizer.quantize(w, nbits=nbits, group_size=group, axis=1, device="cpu",
                                 compute_dtype=torch.float32)
    meta["scale"] = meta["scale"].to(dtype)
    meta["zero"] = meta["zero"].to(dtype)
    decoded = dict(meta, compute_dtype=torch.float32, scale=meta["scale"].float(),
                   zero=meta["zero"].float())
    return {"nbits": nbits, "shape": [rows, cols], "group_size": group,
            "dtype": str(dtype).split(".")[1], "packing": meta["packing"],
            "W_q_shape": list(q.shape), "W_q": raw(q), "scale_shape": list(meta["scale"].shape),
            "scale": raw(meta["scale"]), "zero": raw(meta["zero"]),
            "W": raw(Quantizer.dequantize(q, decoded))}


def main():
    torch.manual_seed(1)
    made = {name: entry(*rest) for name, *rest in ENTRIES}
    lines = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in made.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
