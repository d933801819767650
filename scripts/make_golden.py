#!/usr/bin/env python3
"""Recomputes the golden files of tests/golden. Run by hand; needs numpy.

    scripts/make_golden.py            check and rewrite all files that have a maker
    scripts/make_golden.py NAME...    only those, e.g. gguf_blocks

The decoders and encoders here are written from the layouts alone and share nothing with the C
code, so that the two check each other. They favour being readable as a statement of the layout
over speed: one block at a time, mostly in Python integers.

Inputs that were drawn at random once (block bytes, float inputs, codes and scales) are taken from
the recorded file; every output in the file is then computed again from them. A difference is
reported and nothing is written. When all agree, the file is written anew, in one canonical
spelling, so an unchanged tree stays unchanged.

To add a file: write a function that takes the recorded file (a dict) and returns the whole new one
(a dict), and register it with @golden("name").
"""

import json
import pathlib
import struct
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
MAKERS = {}

f32 = np.float32
np.seterr(all="ignore")  # infinities and NaN are data here


def golden(name):
    def register(maker):
        MAKERS[name] = maker
        return maker

    return register


# ---- numbers ----


def number(v, keep_sign=False):
    """A float as the files spell it: the shortest decimal that gives it back, or a word.
    Negative zero is written as 0 unless asked for, because decoders may differ in it."""
    v = float(v)
    if np.isnan(v):
        return "nan"
    if np.isinf(v):
        return "inf" if v > 0 else "-inf"
    return v if v != 0 or keep_sign else 0.0


def rational(sign, mantissa, exponent):
    return (-1.0 if sign else 1.0) * mantissa * 2.0**exponent


def small_float_decode(code, exp_bits, man_bits):
    """A code of an IEEE-like binary format (1 sign bit, infinities and NaN in the last binade)."""
    sign = code >> (exp_bits + man_bits)
    e = code >> man_bits & ((1 << exp_bits) - 1)
    m = code & ((1 << man_bits) - 1)
    bias = (1 << (exp_bits - 1)) - 1
    if e == (1 << exp_bits) - 1:
        return float("nan") if m else rational(sign, float("inf"), 0)
    if e == 0:
        return rational(sign, m, 1 - bias - man_bits)
    return rational(sign, m + (1 << man_bits), e - bias - man_bits)


def small_float_encode(x, exp_bits, man_bits):
    """The nearest code, ties to even; beyond the largest number plus half a step, infinity.
    Codes above zero are ordered as their values, and the code of infinity follows that of the
    largest finite number as though its binade went on, which is what rounding to it means."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    sign = (bits >> 31) << (exp_bits + man_bits)
    x = abs(float(x))
    inf = ((1 << exp_bits) - 1) << man_bits
    if np.isnan(x):
        return sign | inf | 1 << (man_bits - 1)
    bias = (1 << (exp_bits - 1)) - 1
    values = lambda c: small_float_decode(c, exp_bits, man_bits) if c < inf else 2.0 ** (bias + 1)
    if x >= values(inf):
        return sign | inf
    low, high = 0, inf  # values(low) <= x < values(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if values(middle) <= x else (low, middle)
    below, above = x - values(low), values(high) - x
    return sign | (high if above < below or (above == below and high % 2 == 0) else low)


def half(b, at=0):
    return f32(small_float_decode(int.from_bytes(b[at : at + 2], "little"), 5, 10))


def half_bytes(x):
    return small_float_encode(f32(x), 5, 10).to_bytes(2, "little")


def e4m3(code):
    """E4M3FN without its NaN: magnitudes of the unsigned scales of NVFP4."""
    e, m = code >> 3 & 15, code & 7
    return f32(m * 2.0**-9 if e == 0 else (8 + m) * 2.0 ** (e - 10))


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [-v for v in E2M1]


def nearest_e2m1(x, scale):
    """ggml scans the sixteen codes for the least error and keeps the first."""
    return min(range(16), key=lambda c: abs(f32(f32(E2M1[c]) * scale) - x))


@golden("fp16_bf16")
def make_fp16_bf16(old):
    new = {"about": old["about"]}
    for name, exp_bits, man_bits in (("fp16", 5, 10), ("bf16", 8, 7)):
        new[name + "_decode"] = [
            [c, number(small_float_decode(c, exp_bits, man_bits), keep_sign=True)]
            for c, _ in old[name + "_decode"]
        ]
        new[name + "_encode"] = [
            [h, small_float_encode(struct.unpack("<f", bytes.fromhex(h))[0], exp_bits, man_bits)]
            for h, _ in old[name + "_encode"]
        ]
    return new


# ---- GGUF blocks: bytes to values ----
# Each decoder takes the bytes of one block. Products and sums are binary32, as numpy's f32 does
# them; where three factors meet, the scale is formed first.


def nibbles(qs):
    """Byte j holds element j in its low nibble, and element j + len(qs) in its high one."""
    return [b & 15 for b in qs] + [b >> 4 for b in qs]


def bit(b, j):
    return b[j // 8] >> j % 8 & 1


def decode_q4_0(b):
    return [half(b) * f32(q - 8) for q in nibbles(b[2:])]


def decode_q4_1(b):
    return [half(b) * f32(q) + half(b, 2) for q in nibbles(b[4:])]


def decode_q5_0(b):
    q = [n | bit(b[2:6], j) << 4 for j, n in enumerate(nibbles(b[6:]))]
    return [half(b) * f32(v - 16) for v in q]


def decode_q5_1(b):
    q = [n | bit(b[4:8], j) << 4 for j, n in enumerate(nibbles(b[8:]))]
    return [half(b) * f32(v) + half(b, 2) for v in q]


def signed(b):
    return [v - 256 if v > 127 else v for v in b]


def decode_q8_0(b):
    return [half(b) * f32(q) for q in signed(b[2:])]


def decode_q8_1(b):
    return [half(b) * f32(q) for q in signed(b[4:])]


def decode_q2_k(b):
    scales, qs, d, dmin = b[:16], b[16:80], half(b, 80), half(b, 82)
    y = []
    for i in range(256):
        n, j, l = i // 128, i % 128 // 32, i % 32
        s, q = scales[i // 16], qs[32 * n + l] >> 2 * j & 3
        y.append(d * f32(s & 15) * f32(q) - dmin * f32(s >> 4))
    return y


def decode_q3_k(b):
    hmask, qs, packed, d = b[:32], b[32:96], b[96:108], half(b, 108)
    scale = []
    for j in range(16):
        low = packed[j] & 15 if j < 8 else packed[j - 8] >> 4
        scale.append((low | (packed[8 + j % 4] >> 2 * (j // 4) & 3) << 4) - 32)
    y = []
    for i in range(256):
        n, j, l = i // 128, i % 128 // 32, i % 32
        q = (qs[32 * n + l] >> 2 * j & 3) - (0 if hmask[l] >> (4 * n + j) & 1 else 4)
        y.append(d * f32(scale[i // 16]) * f32(q))
    return y


def six_bit_pairs(s):
    """The eight (scale, minimum) pairs of a Q4_K or Q5_K super-block."""
    first = [(s[k] & 63, s[k + 4] & 63) for k in range(4)]
    rest = [(s[k + 8] & 15 | s[k] >> 6 << 4, s[k + 8] >> 4 | s[k + 4] >> 6 << 4) for k in range(4)]
    return first + rest


def decode_q4_k(b):
    d, dmin, pairs, qs = half(b), half(b, 2), six_bit_pairs(b[4:16]), b[16:]
    y = []
    for i in range(256):
        k, l = i // 32, i % 32
        q = qs[32 * (k // 2) + l] >> 4 * (k % 2) & 15
        y.append(d * f32(pairs[k][0]) * f32(q) - dmin * f32(pairs[k][1]))
    return y


def decode_q5_k(b):
    d, dmin, pairs, qh, qs = half(b), half(b, 2), six_bit_pairs(b[4:16]), b[16:48], b[48:]
    y = []
    for i in range(256):
        k, l = i // 32, i % 32
        q = (qs[32 * (k // 2) + l] >> 4 * (k % 2) & 15) + 16 * (qh[l] >> k & 1)
        y.append(d * f32(pairs[k][0]) * f32(q) - dmin * f32(pairs[k][1]))
    return y


def decode_q6_k(b):
    ql, qh, scales, d = b[:128], b[128:192], signed(b[192:208]), half(b, 208)
    y = []
    for i in range(256):
        n, g, l = i // 128, i % 128 // 32, i % 32
        low = ql[64 * n + 32 * (g & 1) + l] >> (4 if g >= 2 else 0) & 15
        q = (low | (qh[32 * n + l] >> 2 * g & 3) << 4) - 32
        y.append(d * f32(scales[i // 16]) * f32(q))
    return y


def decode_q8_k(b):
    d = f32(struct.unpack("<f", b[:4])[0])
    return [d * f32(q) for q in signed(b[4:260])]


IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def decode_iq4_nl(b):
    return [half(b) * f32(IQ4[q]) for q in nibbles(b[2:])]


def decode_iq4_xs(b):
    d, high, low, qs = half(b), int.from_bytes(b[2:4], "little"), b[4:8], b[8:]
    y = []
    for k in range(8):
        ls = (low[k // 2] >> 4 * (k % 2) & 15) | (high >> 2 * k & 3) << 4
        y += [d * f32(ls - 32) * f32(IQ4[q]) for q in nibbles(qs[16 * k : 16 * k + 16])]
    return y


def decode_tq1_0(b):
    qs, qh, d = b[:48], b[48:52], half(b, 52)
    digit = lambda byte, n: ((byte * 3**n & 255) * 3 >> 8) - 1
    t = [digit(v, n) for n in range(5) for v in qs[:32]]
    t += [digit(v, n) for n in range(5) for v in qs[32:]]
    t += [digit(v, n) for n in range(4) for v in qh]
    return [d * f32(v) for v in t]


def decode_tq2_0(b):
    d = half(b, 64)
    return [
        d * f32((b[32 * h + m] >> 2 * l & 3) - 1)
        for h in range(2)
        for l in range(4)
        for m in range(32)
    ]


def decode_mxfp4(b):
    return [f32(2.0 ** (b[0] - 127) * E2M1[q]) for q in nibbles(b[1:])]


def decode_nvfp4(b):
    y = []
    for s in range(4):
        scale = f32(0) if b[s] in (0, 0x7F) else e4m3(b[s])
        y += [scale * f32(E2M1[q]) for q in nibbles(b[4 + 8 * s : 12 + 8 * s])]
    return y


def decode_q1_0(b):
    return [half(b) if bit(b[2:], j) else -half(b) for j in range(128)]


def decode_q2_0(b):
    return [half(b) * f32((b[2 + j // 4] >> 2 * (j % 4) & 3) - 1) for j in range(64)]


DECODERS = {
    "Q4_0": decode_q4_0,
    "Q4_1": decode_q4_1,
    "Q5_0": decode_q5_0,
    "Q5_1": decode_q5_1,
    "Q8_0": decode_q8_0,
    "Q8_1": decode_q8_1,
    "Q2_K": decode_q2_k,
    "Q3_K": decode_q3_k,
    "Q4_K": decode_q4_k,
    "Q5_K": decode_q5_k,
    "Q6_K": decode_q6_k,
    "Q8_K": decode_q8_k,
    "IQ4_NL": decode_iq4_nl,
    "IQ4_XS": decode_iq4_xs,
    "TQ1_0": decode_tq1_0,
    "TQ2_0": decode_tq2_0,
    "MXFP4": decode_mxfp4,
    "NVFP4": decode_nvfp4,
    "Q1_0": decode_q1_0,
    "Q2_0": decode_q2_0,
}


@golden("gguf_blocks")
def make_gguf_blocks(old):
    new = {}
    for name, entry in old.items():
        new[name] = entry
        if name == "about":
            continue
        blocks = []
        for block in entry["blocks"]:
            data = bytes.fromhex(block["hex"])
            assert len(data) == entry["bytes"], name
            values = [number(v) for v in DECODERS[name](data)]
            assert len(values) == entry["elements"], name
            blocks.append({"case": block["case"], "hex": data.hex(), "values": values})
        new[name] = dict(entry, blocks=blocks)
    return new


# ---- GGUF blocks: values to bytes ----
# As ggml's reference quantizers: binary32 throughout, codes from the scale before it is rounded to
# f16, multiplication by 1/d. Integers are C casts, so they truncate.


def inverse(d):
    return f32(1) / d if d else f32(0)


def signed_absmax(x):
    """The first element of the largest magnitude, with its sign."""
    return max(x, key=abs) if any(x) else f32(0)


def round_away(v):
    return int(np.floor(abs(float(v)) + 0.5)) * (1 if v >= 0 else -1)


def pack_nibbles(q):
    n = len(q) // 2
    return bytes((q[j] & 15) | (q[j + n] & 15) << 4 for j in range(n))


def pack_high(q):
    return sum((v >> 4 & 1) << j for j, v in enumerate(q)).to_bytes(4, "little")


def symmetric_codes(x, half_range):
    d = signed_absmax(x) / f32(-half_range)
    inv, middle = inverse(d), f32(half_range + 0.5)
    return d, [min(2 * half_range - 1, int(v * inv + middle)) for v in x]


def codes_above_min(x, top):
    low, high = min(x), max(x)
    d = (high - low) / f32(top)
    inv = inverse(d)
    return d, low, [min(top, int((v - low) * inv + f32(0.5))) for v in x]


def encode_q4_0(x):
    d, q = symmetric_codes(x, 8)
    return half_bytes(d) + pack_nibbles(q)


def encode_q5_0(x):
    d, q = symmetric_codes(x, 16)
    return half_bytes(d) + pack_high(q) + pack_nibbles(q)


def encode_q4_1(x):
    d, low, q = codes_above_min(x, 15)
    return half_bytes(d) + half_bytes(low) + pack_nibbles(q)


def encode_q5_1(x):
    d, low, q = codes_above_min(x, 31)
    return half_bytes(d) + half_bytes(low) + pack_high(q) + pack_nibbles(q)


def encode_q8_0(x):
    d = max(abs(v) for v in x) / f32(127)
    inv = inverse(d)
    return half_bytes(d) + bytes(round_away(v * inv) & 255 for v in x)


def ternary_digits(x):
    d = max(abs(v) for v in x)
    inv = inverse(d)
    return d, [round_away(v * inv) + 1 for v in x]


def encode_tq1_0(x):
    d, t = ternary_digits(x)

    def byte(digits):
        q = 0
        for v in digits + [0] * (5 - len(digits)):
            q = q * 3 + v
        return (q * 256 + 242) // 243

    out = [byte([t[m + 32 * n] for n in range(5)]) for m in range(32)]
    out += [byte([t[160 + m + 16 * n] for n in range(5)]) for m in range(16)]
    out += [byte([t[240 + m + 4 * n] for n in range(4)]) for m in range(4)]
    return bytes(out) + half_bytes(d)


def encode_tq2_0(x):
    d, t = ternary_digits(x)
    qs = [
        sum(t[128 * h + 32 * l + m] << 2 * l for l in range(4)) for h in range(2) for m in range(32)
    ]
    return bytes(qs) + half_bytes(d)


def encode_mxfp4(x):
    amax = float(max(abs(v) for v in x))
    e = max(0, int(np.floor(np.log2(amax))) - 2 + 127) if amax > 0 else 0
    scale = f32(2.0 ** (e - 127))
    return bytes([e]) + pack_nibbles([nearest_e2m1(v, scale) for v in x])


def encode_nvfp4(x):
    scales, codes = b"", b""
    for s in range(4):
        part = x[16 * s : 16 * s + 16]
        wanted = max(abs(v) for v in part) / f32(6)
        # ties go to the even code, as everywhere; 0x7e is the largest number
        code = min(range(0x7F), key=lambda c: (abs(float(e4m3(c)) - float(wanted)), c & 1))
        scale = e4m3(code)
        scales += bytes([code])
        codes += pack_nibbles([nearest_e2m1(v, scale) for v in part])
    return scales + codes


def encode_q1_0(x):
    total = f32(0)
    for v in x:
        total += abs(v)
    bits = sum((1 if v >= 0 else 0) << j for j, v in enumerate(x))
    return half_bytes(total / f32(128)) + bits.to_bytes(16, "little")


def encode_q2_0(x):
    d = max(abs(v) for v in x)
    inv = inverse(d)
    q = [min(3, max(0, round_away(v * inv) + 1)) for v in x]
    return half_bytes(d) + bytes(sum(q[4 * j + i] << 2 * i for i in range(4)) for j in range(16))


ENCODERS = {
    "Q4_0": encode_q4_0,
    "Q4_1": encode_q4_1,
    "Q5_0": encode_q5_0,
    "Q5_1": encode_q5_1,
    "Q8_0": encode_q8_0,
    "TQ1_0": encode_tq1_0,
    "TQ2_0": encode_tq2_0,
    "MXFP4": encode_mxfp4,
    "NVFP4": encode_nvfp4,
    "Q1_0": encode_q1_0,
    "Q2_0": encode_q2_0,
}


@golden("gguf_quantize")
def make_gguf_quantize(old):
    new = {}
    for name, entry in old.items():
        new[name] = entry
        if name not in ENCODERS:
            assert isinstance(entry, str), name
            continue
        cases = []
        for case in entry["cases"]:
            x = [f32(v) for v in case["input"]]
            assert len(x) == entry["elements"] and [float(v) for v in x] == case["input"], name
            cases.append({"input": case["input"], "hex": ENCODERS[name](x).hex()})
        new[name] = dict(entry, cases=cases)
    return new


# ---- compressed-tensors ----


def pack_bits(codes, bits):
    """Codes in offset binary as one little-endian bit string, cut into whole 32-bit words."""
    n_bytes = (len(codes) * bits + 31) // 32 * 4
    string = sum((q + (1 << (bits - 1))) << bits * k for k, q in enumerate(codes))
    return string.to_bytes(n_bytes, "little")


@golden("compressed_tensors")
@golden("compressed_tensors_low")
def make_compressed_tensors(old):
    """Codes, zero points and scales are the recorded inputs; packed words and values follow."""
    new = {"about": old["about"]}
    for name, e in old.items():
        if name == "about":
            continue
        bits, n, k, gs = e["bits"], e["N"], e["K"], e["group_size"]
        q, zero, n_groups = e["q"], e.get("zero_point"), -(-k // gs)
        limit = 1 << (bits - 1)
        assert all(-limit <= v < limit for row in q for v in row), name
        raw = bytes.fromhex(e["weight_scale_f16"])
        scale = [[half(raw, 2 * (r * n_groups + g)) for g in range(n_groups)] for r in range(n)]
        out = dict(e)
        packed = [pack_bits(row, bits) for row in q]
        out["weight_packed"] = b"".join(packed).hex()
        out["weight_packed_shape"] = [n, len(packed[0]) // 4]
        out["weight_shape"] = [n, k]
        out["weight_scale_shape"] = [n, n_groups]
        if zero is not None:  # packed along the rows: a word holds one column's
            columns = [pack_bits([row[g] for row in zero], bits) for g in range(n_groups)]
            n_words = len(columns[0]) // 4
            words = [columns[g][4 * w : 4 * w + 4] for w in range(n_words) for g in range(n_groups)]
            out["weight_zero_point"] = b"".join(words).hex()
            out["weight_zero_point_shape"] = [n_words, n_groups]
        z = zero or [[0] * n_groups] * n
        out["W"] = [
            [number(scale[r][c // gs] * f32(q[r][c] - z[r][c // gs])) for c in range(k)]
            for r in range(n)
        ]
        new[name] = out
    return new


# ---- GPTQ and AWQ ----


def columns_as_words(codes, bits):
    """codes[k][n]: one bit string per column n, its words below each other; row-major bytes."""
    n = len(codes[0])
    strings = [unsigned_bits([row[i] for row in codes], bits) for i in range(n)]
    n_words = len(strings[0]) // 4
    return b"".join(strings[i][4 * w : 4 * w + 4] for w in range(n_words) for i in range(n))


def unsigned_bits(codes, bits):
    string = sum(q << bits * k for k, q in enumerate(codes))
    return string.to_bytes(len(codes) * bits // 8, "little")


def dequantized(q, zeros, scale, group):
    """[n][k] from codes [k][n]."""
    return [
        [scale[group[k]][n] * f32(q[k][n] - zeros[group[k]][n]) for k in range(len(q))]
        for n in range(len(q[0]))
    ]


@golden("gptq")
def make_gptq(old):
    new = {"about": old["about"]}
    for name, e in old.items():
        if name == "about":
            continue
        bits, q, zeros = e["bits"], e["q"], e["zeros"]
        raw = bytes.fromhex(e["scales_f16"])
        scale = [[half(raw, 2 * (g * e["N"] + n)) for n in range(e["N"])] for g in range(len(zeros))]
        values = dequantized(q, zeros, scale, e["g_idx"])
        out = dict(e)
        out["qweight"] = columns_as_words(q, bits).hex()
        for version, less in (("qzeros_v1", 1), ("qzeros_v2", 0)):
            rows = [unsigned_bits([z - less for z in row], bits) for row in zeros]
            out[version] = b"".join(rows).hex()
        out["W_f32le_hex"] = b"".join(struct.pack("<f", v + 0) for r in values for v in r).hex()
        out["W_row0_first8"] = [number(v) for v in values[0][:8]]
        new[name] = out
    return new


@golden("awq")
def make_awq(old):
    order = old["nibble_order_low_to_high"]
    new = dict(old)
    for name, e in old.items():
        if not isinstance(e, dict):
            continue

        def words(rows):
            nibbles = [row[8 * c + i] for row in rows for c in range(len(row) // 8) for i in order]
            return unsigned_bits(nibbles, 4)

        raw, n = bytes.fromhex(e["scales_f16"]), e["N"]
        scale = [[half(raw, 2 * (g * n + i)) for i in range(n)] for g in range(len(e["zeros"]))]
        group = [k // e["group_size"] for k in range(e["K"])]
        values = dequantized(e["q"], e["zeros"], scale, group)
        out = dict(e, qweight=words(e["q"]).hex(), qzeros=words(e["zeros"]).hex())
        out["W"] = [[number(v) for v in row] for row in values]
        new[name] = out
    return new


# ---- the files ----


def spell(content):
    """One line per member: a change of one entry is one line of a diff."""
    lines = [
        json.dumps(key) + ":" + json.dumps(value, separators=(",", ":"), allow_nan=False)
        for key, value in content.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences(old, new, path=""):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in list(old) + [k for k in new if k not in old]:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from differences(a, b, f"{path}[{i}]")
    elif old != new:
        yield f"{path}: recorded {old!r}, computed {new!r}"


def main(names):
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        sys.exit(f"no maker for {', '.join(unknown)}; there are {', '.join(MAKERS)}")
    bad = 0
    for name in names or MAKERS:
        path = FOLDER / f"{name}.json"
        old = json.loads(path.read_text())
        new = MAKERS[name](old)
        found = list(differences(old, new))
        for line in found[:10]:
            print(f"{name}{line}")
        if found:
            print(f"{name}: {len(found)} differences, not written")
            bad += 1
            continue
        path.write_text(spell(new))
        print(f"{name}: same values")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
