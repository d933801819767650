#!/usr/bin/env python3
"""The table of docs/results.md: method x scheme -> bits per weight, perplexity, KL, top-1, tasks,
seconds (of the wall, and of all CPUs), peak memory, measured here and now, by nibble alone.

    scripts/results.py MODEL --calib TEXT --text TEXT [--tasks FILE]... [--rows REGEX]
                       [--nibble PATH] [--work FOLDER] [--windows 16] [--samples 128]

Rows are quantized, scored against the original a few at a time (protocol `paper`: windows of 2,048
tokens), and removed; numbers stay in FOLDER/rows.json, so that a run that was cut goes on where it
was.
Bits per weight count the linear layers of the blocks with scales and zero points, as stored.
Python's standard library is all it needs.
"""
import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time

SIDE_BY_SIDE = 4  # models that are scored in one run

# Rows make up for each other's errors by the moments of output gradients.
GUIDED = "--method qronos --guide-outputs --calib-samples 64 --calib-len 1024"
# name, scheme, flags beside --calib; compute mode of the evaluation
ROWS = [
    ("RTN", "W8A16", "--method rtn", "f"),
    ("RTN searched", "W8A16", "--method rtn:search", "f"),
    ("GPTQ", "W8A16", "--method gptq", "f"),
    ("RTN", "W8A8", "--method rtn", "auto"),
    ("SmoothQuant", "W8A8", "--method rtn:search --transform smoothquant", "auto"),
    ("SmoothQuant + GPTQ", "W8A8", "--method gptq --transform smoothquant", "auto"),
    ("RTN", "FP8", "--method rtn", "auto"),
    ("RTN searched", "FP8", "--method rtn:search", "auto"),
    ("GPTQ", "FP8", "--method gptq", "auto"),
    ("RTN", "NF4", "--method rtn", "f"),
    ("RTN", "W4A16:g32,sym", "--method rtn", "f"),
    ("RTN searched", "W4A16:g32,sym", "--method rtn:search", "f"),
    ("GPTQ", "W4A16:g32,sym", "--method gptq", "f"),
    ("GPTQ, 32 sequences", "W4A16:g32,sym", "--method gptq --calib-samples 32", "f"),
    ("GPTAQ", "W4A16:g32,sym", "--method gptaq", "f"),
    ("Qronos", "W4A16:g32,sym", "--method qronos", "f"),
    ("AutoRound", "W4A16:g32,sym", "--method autoround --calib-samples 512 --calib-len 512", "f"),
    ("AutoRound, 50 steps", "W4A16:g32,sym",
     "--method autoround:iters=50 --calib-samples 128 --calib-len 512", "f"),
    ("AWQ, 128 x 512", "W4A16:g32,asym",
     "--method rtn:search --transform awq --calib-len 512", "f"),
    ("AWQ, 16 x 512", "W4A16:g32,asym",
     "--method rtn:search --transform awq --calib-samples 16 --calib-len 512", "f"),
    ("IQ4_NL weighted", "IQ4_NL", "--method rtn:search", "f"),
    ("IQ4_NL GPTQ", "IQ4_NL", "--method gptq", "f"),
    ("IQ4_NL Qronos", "IQ4_NL", "--method qronos", "f"),
    ("Qronos, guided, 64 x 1024", "IQ4_NL", GUIDED, "f"),
    ("mixed, Qronos, guided, 64 x 1024", "--bpw 4.62",
     GUIDED + " --candidates IQ4_NL;Q5_0;Q8_0", "f"),
    ("IQ4_NL AutoRound", "IQ4_NL", "--method autoround --calib-samples 512 --calib-len 512", "f"),
    ("Q4_0 Qronos", "Q4_0", "--method qronos", "f"),
    ("GPTQ", "W4A16:g64,sym", "--method gptq", "f"),
    ("AWQ, 128 x 512", "W4A16:g64,asym",
     "--method rtn:search --transform awq --calib-len 512", "f"),
    ("HQQ", "W4A16:g64,asym", "--method hqq", "f"),
    ("HQQ", "W4A16:g64,asym,zero=float", "--method hqq", "f"),
    ("HQQ", "IQ4_NL", "--method hqq", "f"),
    ("Qronos", "W4A16:g64,asym", "--method qronos", "f"),
    ("Qronos, guided, 64 x 1024", "W4A16:g64,asym", GUIDED, "f"),
    ("Qronos", "W3A16:g64,asym", "--method qronos", "f"),
    ("Qronos, guided, 64 x 1024", "W3A16:g64,asym", GUIDED, "f"),
    ("Qronos, guided and distilled, 64 x 1024", "W3A16:g64,asym",
     GUIDED + " --distill 16,batch=2,len=1024,lr=0.003", "f"),
    ("GPTQ", "W2A16:g32,asym", "--method gptq", "f"),
    ("Qronos", "W2A16:g32,asym", "--method qronos", "f"),
    ("Qronos, guided, 64 x 1024", "W2A16:g32,asym", GUIDED, "f"),
    ("Qronos, guided and distilled, 64 x 1024", "W2A16:g32,asym",
     GUIDED + " --distill 80,batch=2,len=1024,lr=0.004", "f"),
    ("AutoRound, 200 x 4 x 256", "W2A16:g32,sym",
     "--method autoround:batch=4,len=256 --calib-samples 128 --calib-len 256", "f"),
    ("AutoRound", "W2A16:g32,sym", "--method autoround --calib-samples 512 --calib-len 512", "f"),
]


def cpu_seconds():
    r = resource.getrusage(resource.RUSAGE_CHILDREN)
    return r.ru_utime + r.ru_stime


def run(command):
    """The JSON objects that a command prints, its wall seconds, and those of its CPUs."""
    start, cpu = time.monotonic(), cpu_seconds()
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = p.communicate()
    if p.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{err.strip()}")
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], \
        time.monotonic() - start, cpu_seconds() - cpu


def linear_bpw(nibble, folder):
    """Bits per weight of the blocks' linear layers."""
    bits = n = 0
    for t in run([nibble, "inspect", folder, "--json"])[0]:
        if re.search(r"layers\.\d+\..*_proj\.weight$", t.get("name", "")):
            bits += 8 * t["bytes"]
            n += t["parameters"]
    return bits / n


def make(a, number, name, scheme, flags, compute):
    """A row without its scores; `out` is the model, until it has them."""
    gguf = not scheme.startswith(("W", "F", "N"))  # a mixture's candidates are GGUF's
    out = os.path.join(a.work, f"model-{number}" + (".gguf" if gguf else ""))
    flags = flags.split()
    command = [a.nibble, "quantize", a.model, "-o", out] + \
        (scheme.split() if scheme.startswith("-") else ["--scheme", scheme]) + \
        ["--force", "--json", "--check", "0"]
    if flags != ["--method", "rtn"] and "hqq" not in flags:
        command += ["--calib", a.calib]
        if "--calib-samples" not in flags:
            command += ["--calib-samples", str(a.samples)]
    lines, seconds, cpu = run(command + flags)
    return {"method": name, "scheme": scheme, "compute": compute, "out": out,
            "command": " ".join(["nibble quantize MODEL -o OUT"] + command[5:7] + flags),
            "seconds": seconds, "cpu_seconds": cpu, "rss": lines[-1].get("peak_rss_bytes"),
            "sha256": lines[-1].get("sha256"), "bpw": linear_bpw(a.nibble, out)}


def score(a, rows):
    """Scores models that run in one mode, side by side: the original runs once for all."""
    command = [a.nibble, "eval"] + [r["out"] for r in rows]
    for i in range(len(rows)):
        command += ["--name", str(i)]
    scored = run(command + ["--base", a.model, "--text", a.text, "--protocol", "paper", "--windows",
                            str(a.windows), "--compute", rows[0]["compute"], "--kv", "f32",
                            "--json"])[0]
    for i, r in enumerate(rows):
        found, = [x for x in scored if x.get("name") == str(i)]
        r.update({k: found[k] for k in ("perplexity", "kl_mean", "kl_mean_se", "kl_median",
                                        "kl_p99", "top1", "base_perplexity")})
        r["tasks"] = {}
        for t in a.tasks or []:
            done = run([a.nibble, "eval", r["out"], "--tasks", t, "--limit", str(a.limit),
                        "--compute", r["compute"], "--json"])[0]
            r["tasks"].update({x["task"]: x["acc"] for x in done if "task" in x})
        out = r.pop("out")
        shutil.rmtree(out) if os.path.isdir(out) else os.remove(out)
        beside = out + ".nibble-report.json"
        if os.path.exists(beside):
            os.remove(beside)


def table(rows):
    tasks = sorted({t for r in rows for t in r["tasks"]})
    heads = ["method", "scheme", "bpw", "ppl", "KL mean", "median", "p99", "top-1 %"] + tasks + \
        ["s", "CPU s", "MB"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 2)]
    for r in rows:
        cells = [r["method"], r["scheme"], f"{r['bpw']:.2f}", f"{r['perplexity']:.2f}",
                 f"{r['kl_mean']:.4f}", f"{r['kl_median']:.4f}", f"{r['kl_p99']:.2f}",
                 f"{100 * r['top1']:.1f}"]
        cells += [f"{100 * r['tasks'][t]:.1f}" if t in r["tasks"] else "" for t in tasks]
        cells += [f"{r['seconds']:.0f}", f"{r['cpu_seconds']:.0f}", f"{(r['rss'] or 0) / 1e6:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def score_some(a, rows, least):
    """Scores what waits for it, mode by mode, where at least so many do."""
    for compute in sorted({r["compute"] for r in rows if "out" in r}):
        waiting = [r for r in rows if "out" in r and r["compute"] == compute]
        if len(waiting) >= least:
            score(a, waiting)


def keep(path, rows):
    with open(path + ".tmp", "w") as f:
        json.dump(rows, f, indent=1)
    os.replace(path + ".tmp", path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model")
    p.add_argument("--calib", required=True)
    p.add_argument("--text", required=True)
    p.add_argument("--tasks", action="append")
    p.add_argument("--limit", type=int, default=200)
    p.add_argument("--rows", default="", help="only rows whose 'method scheme' matches")
    p.add_argument("--nibble", default="build/release/nibble")
    p.add_argument("--work", default="results-work")
    p.add_argument("--windows", type=int, default=16)
    p.add_argument("--samples", type=int, default=128)
    a = p.parse_args()
    os.makedirs(a.work, exist_ok=True)
    kept = os.path.join(a.work, "rows.json")
    rows = json.load(open(kept)) if os.path.exists(kept) else []
    for name, scheme, flags, compute in ROWS:
        if not re.search(a.rows, f"{name} {scheme}") or \
                any((r["method"], r["scheme"]) == (name, scheme) for r in rows):
            continue
        print(f"{name} {scheme}", file=sys.stderr, flush=True)
        rows.append(make(a, len(rows), name, scheme, flags, compute))
        keep(kept, rows)
        score_some(a, rows, SIDE_BY_SIDE)
        keep(kept, rows)
    score_some(a, rows, 1)
    keep(kept, rows)
    order = {(n, s): i for i, (n, s, _, _) in enumerate(ROWS)}
    print(table(sorted(rows, key=lambda r: order.get((r["method"], r["scheme"]), 0))))


if __name__ == "__main__":
    main()
