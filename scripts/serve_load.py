#!/usr/bin/env python3
"""The load table of docs/serving.md: `nibble serve` under closed and open loads, beside the engine alone and,
where they are given, other servers under the same loads in turn.

    scripts/serve_load.py MODEL [--kv int8] [--rounds 3] [--only REGEX] [--peer NAME=COMMAND]...

A peer's COMMAND is a server's command line with {port} in it, such as
'llama-server=llama-server -m model.gguf -np 16 -c 8192 -ctk q8_0 -t 2 --port {port}'. Every number is the
median over rounds, in which all servers take turns. Python's standard library is all it needs.
"""
import argparse
import json
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

PROMPT, ANSWER = 64, 128  # tokens of the streams


class Server:
    """A server that runs for the length of a `with`."""

    def __init__(self, command, port, log):
        self.command, self.url, self.log = command, f"http://127.0.0.1:{port}", log

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        for _ in range(1200):
            if self.process.poll() is not None:
                sys.exit(f"serve_load.py: {' '.join(self.command)} ended")
            try:
                urllib.request.urlopen(self.url + "/v1/models", timeout=5).read()
                return self
            except OSError:
                time.sleep(0.1)
        sys.exit(f"serve_load.py: no answer from {self.url}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def metric(self, name):
        page = urllib.request.urlopen(self.url + "/metrics", timeout=30).read().decode()
        return sum(float(m.group(1)) for m in
                   re.finditer(r"^%s(?:\{[^}]*\})? (\S+)$" % re.escape(name), page, re.M))


class Load:
    """One run of `nibble bench serve` and what it printed."""

    def __init__(self, a, url, seed, **options):
        self.command = [a.nibble, "bench", "serve", "--url", url, "--json", "--seed", str(seed)]
        for key, value in options.items():
            self.command += ["--" + key.replace("_", "-"), str(value)]

    def run(self):
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(self.command)}\n{done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])


def streams(a, server, n, seed):
    return Load(a, server.url, seed, concurrency=n, requests=max(8, 3 * n), input_len=PROMPT,
                output_len=ANSWER).run()


def engine(a, model, n):
    """Seconds of a step of n sequences, without scheduler, server and clients."""
    done = subprocess.run([a.nibble, "bench"] + model + ["--kv", a.kv, "--batch", str(n), "--prompt",
                                                         str(PROMPT), "--json", "--quiet"],
                          capture_output=True, text=True, check=True)
    return n / json.loads(done.stdout.splitlines()[-1])["batch_decode_tok_s"][str(n)]


def prefix(a, server, seed):
    """Times to the first token of a prompt of 1,000 tokens: new, and once more."""
    both = [Load(a, server.url, seed, concurrency=1, requests=1, input_len=1000, output_len=2,
                 warmup=0).run()["mean_ttft_ms"] for _ in range(2)]
    return both[1] / both[0]


def waste(a, server, seed):
    """The largest share of the cells of taken blocks that hold nothing, with prompts of 400
    tokens and 64 more."""
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.2):
            seen.append(server.metric("nibble:kv_fragmentation_ratio"))

    watcher = threading.Thread(target=look)
    watcher.start()
    Load(a, server.url, seed, concurrency=16, requests=32, input_len=400, output_len=64).run()
    over.set()
    watcher.join()
    return statistics.mean(seen), max(seen)


def overload(a, server, capacity, seed):
    """Ten times what the server can do, for a minute: the share of it that still comes out, and what
    the others were told."""
    rate = 10 * capacity / ANSWER
    got = Load(a, server.url, seed, rate=rate, duration=60, input_len=PROMPT, output_len=ANSWER).run()
    return got["output_throughput"] / capacity, got["status_codes"], got["completed"], got["failed"]


def median(values):
    return statistics.median(values)


def line(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def measure_streams(a, servers, counts):
    found = {}
    for r in range(a.rounds):
        for name, command in servers:
            with Server(command, a.port, a.log) as server:
                for n in counts:
                    found.setdefault((name, n), []).append(streams(a, server, n, a.seed + 100 * r + n))
    for name, _ in servers:
        for n in counts:
            runs = found[name, n]
            line(f"{name}, {n} streams", "%.0f tok/s" % median([r["output_throughput"] for r in runs]),
                 "TTFT %.0f / %.0f ms" % (median([r["median_ttft_ms"] for r in runs]),
                                          median([r["p99_ttft_ms"] for r in runs])),
                 "ITL %.1f / %.1f ms" % (median([r["median_itl_ms"] for r in runs]),
                                         median([r["p99_itl_ms"] for r in runs])))
    return {key: median([r["output_throughput"] for r in runs]) for key, runs in found.items()}, \
        {key: median([r["median_itl_ms"] for r in runs]) for key, runs in found.items()}


def nibble_server(a, model):
    return [a.nibble, "serve"] + model + ["--kv", a.kv, "--port", str(a.port), "--max-seqs", "64"]


def ratios(rates, servers):
    line("nibble, 16 streams to one", "%.2f x" % (rates["nibble", 16] / rates["nibble", 1]), "", "")
    for name, _ in servers[1:]:
        line(f"nibble to {name}, 16 streams", "%.2f x" % (rates["nibble", 16] / rates[name, 16]), "", "")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model")
    p.add_argument("--kv", default="int8")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default="", help="of streams, overhead, prefix, waste, overload")
    p.add_argument("--peer", action="append", default=[])
    p.add_argument("--port", type=int, default=8123)
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--nibble", default="build/release/nibble")
    a = p.parse_args()
    a.log = tempfile.TemporaryFile()
    servers = [("nibble", nibble_server(a, [a.model]))]
    for peer in a.peer:
        name, command = peer.split("=", 1)
        servers.append((name, shlex.split(command.replace("{port}", str(a.port)))))

    def wanted(name):
        return re.search(a.only, name)

    line("load", "result", "", "")
    line("---", "---", "---", "---")
    if wanted("streams"):
        rates, _ = measure_streams(a, servers, (1, 4, 16))
        ratios(rates, servers)
    if wanted("overhead"):
        _, gaps = measure_streams(a, servers[:1], (64,))
        alone = median([engine(a, [a.model], 64) for _ in range(a.rounds)])
        line("added by scheduler, HTTP and SSE, a token and stream, of 64",
             "%.0f us" % (1e6 * (gaps["nibble", 64] / 1000 - alone) / 64),
             "the engine's step %.1f ms" % (1000 * alone), "")
    with Server(servers[0][1], a.port, a.log) as server:
        if wanted("prefix"):
            line("time to the first token, prompt of 1,000 tokens, known to new",
                 "%.1f %%" % (100 * median([prefix(a, server, a.seed + r) for r in range(a.rounds)])), "", "")
        if wanted("waste"):
            mean, most = waste(a, server, a.seed + 1000)
            line("cells of taken blocks that hold nothing, prompts of 400 tokens",
                 "%.1f %%" % (100 * mean), "at most %.1f %%" % (100 * most), "")
        if wanted("overload"):
            full = Load(a, server.url, a.seed + 2000, concurrency=64, requests=192, input_len=PROMPT,
                        output_len=ANSWER).run()["output_throughput"]
            share, codes, done, failed = overload(a, server, full, a.seed + 3000)
            line("ten times as much as there is room for, a minute", "%.0f %% of %.0f tok/s" %
                 (100 * share, full), f"{done} answered, {failed} refused", json.dumps(codes))


if __name__ == "__main__":
    main()
