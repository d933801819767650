#!/usr/bin/env python3
"""A nibble with a planted fault has to fail `nibble verify`, which has to name the operation.

    tests/fault/check.py NIBBLE FAULT

Called by scripts/check_faults.sh for each fault of fault.c."""

import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
import lib

# The operation to be named, what sets the two ways apart, and an instruction set that must be here.
EXPECTED = {
    "rmsnorm_lane": ("norm", "isa", ("avx2", "neon")),
    "gemm_f_chunk": ("down", "isa", ("avx2",)),
    "swiglu_thread": ("SwiGLU", "threads", ()),
    "attention_cell": ("attention", "cut", ()),
    "attention_pages": ("attention", "batch", ()),
}


def parts(way):
    """'avx2, 3 threads, cuts of 7, beside 6 others' by axis."""
    isa, threads, cut, batch = way.split(", ")[:4]
    return {"isa": isa, "threads": threads, "cut": cut, "batch": batch}


def main():
    nibble, fault = sys.argv[1:]
    op, axis, needs = EXPECTED[fault]
    with tempfile.TemporaryDirectory() as folder:
        model = lib.write_gguf(os.path.join(folder, "tiny.gguf"), lib.TinyModel(), "q4_0", "q8_0")
        done = subprocess.run([nibble, "verify", model, "-n", "40", "--json"], capture_output=True,
                              text=True, timeout=300)
    if axis in ("cut", "batch"):  # what bench checks, too, before it times
        timed = subprocess.run([nibble, "bench", "--shape", "2x64,2/1x32,96,300", "-r", "1"],
                               capture_output=True, text=True, timeout=300)
        if timed.returncode != 1 or "disagree: this is a fault" not in timed.stderr:
            sys.exit("%s: bench ended with %d: %s" % (fault, timed.returncode, timed.stderr))
    if not done.stdout:
        sys.exit("%s: verify said nothing: %s" % (fault, done.stderr))
    result = json.loads(done.stdout)
    if needs and not {i["isa"] for i in result["isas"]} & set(needs):
        print("%s: needs %s, which this machine lacks" % (fault, " or ".join(needs)))
        return
    found = result["mismatch"]
    if done.returncode != 1 or found is None:
        sys.exit("%s: verify ended with %d: %s" % (fault, done.returncode, done.stdout))
    named = found["op"] or ""
    if op not in named or named not in done.stderr:
        sys.exit("%s: expected '%s' to be named, not: %s" % (fault, op, done.stderr))
    a, b = map(parts, found["ways"])
    if a[axis] == b[axis]:
        sys.exit("%s: is a matter of %s, and verify says: %s" % (fault, axis, done.stderr))
    if axis != "batch" and a["batch"] != b["batch"] or axis == "isa" and \
            any(a[other] != b[other] for other in ("threads", "cut")):
        sys.exit("%s: more than %s is said to matter: %s" % (fault, axis, done.stderr))
    print("%s: %s" % (fault, done.stderr.strip()))


if __name__ == "__main__":
    main()
