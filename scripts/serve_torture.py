#!/usr/bin/env python3
"""What wears a server out, against a running one: idle connections, slow senders, malformed requests,
readers that vanish, a thousand streams, and more work than it can do.

    nibble serve MODEL --port 8000 --max-seqs 16 --max-queue 64 &
    scripts/serve_torture.py http://127.0.0.1:8000 --pid $!

For `streams` to be open all at once the server needs `--max-queue 1000`.

    --only NAME     one of: idle slow malformed vanish streams overload
    --scale X       fewer (0.1) or more of everything (1)

Prints a line for each with what was seen; ends with 1 when a bound of docs/serving.md was broken.
With --pid it also watches the server's memory. The limit of open files has to allow 6,000.
"""

import argparse
import json
import os
import random
import re
import resource
import selectors
import socket
import sys
import threading
import time
import urllib.parse

FAILED = []


def check(condition, what):
    if not condition:
        FAILED.append(what)
        print("  BROKEN: " + what)


class Target:
    def __init__(self, options):
        url = urllib.parse.urlparse(options.url)
        self.at = (url.hostname, url.port)
        self.pid = options.pid
        self.scale = options.scale
        self.key = options.key

    def n(self, count):
        return max(1, int(count * self.scale))

    def connect(self, timeout=60):
        return socket.create_connection(self.at, timeout=timeout)

    def resident(self):
        if self.pid is None:
            return 0
        with open("/proc/%d/statm" % self.pid) as f:
            return int(f.read().split()[1]) * resource.getpagesize()

    def request(self, path, body, **more):
        body = json.dumps(dict(body, **more)).encode() if isinstance(body, dict) else body
        return (b"POST %s HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n"
                b"\r\n" % (path.encode(), self.key.encode(), len(body)) + body)

    def health(self):
        """Seconds that /health takes."""
        start = time.monotonic()
        with self.connect() as s:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            answer = s.recv(100)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit("the server is not well: %r" % answer)
        return time.monotonic() - start

    def metric(self, name):
        with self.connect() as s:
            s.sendall(b"GET /metrics HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer %s\r\n"
                      b"Connection: close\r\n\r\n" % self.key.encode())
            text = b""
            while piece := s.recv(1 << 16):
                text += piece
        for line in text.decode().splitlines():
            if line.startswith(name):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def quiet(self, seconds=30):
        """Nothing runs or waits any more: how long that took; None when it did not end."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if self.metric("vllm:num_requests_running") + \
                    self.metric("vllm:num_requests_waiting") == 0:
                return time.monotonic() - start
            time.sleep(0.02)
        return None


def status(answer):
    return int(answer[9:12]) if answer[:9] in (b"HTTP/1.1 ", b"HTTP/1.0 ") else 0


def idle(t):
    before, n = t.resident(), t.n(5000)
    connections = [t.connect() for _ in range(n)]
    times = sorted(t.health() for _ in range(50))
    each = (t.resident() - before) / n
    print("idle: %d connections, %.1f KiB each, /health p99 %.1f ms" %
          (n, each / 1024, times[-1] * 1000))
    check(each < 16384, "an idle connection takes 16 KiB")
    check(times[-1] < 0.1, "/health takes 100 ms beside idle connections")
    for c in connections:
        c.close()


def slow(t):
    n, start = t.n(1000), time.monotonic()
    connections = [t.connect() for _ in range(n)]
    for i, c in enumerate(connections):
        c.sendall((b"GET /health HTTP/1.1\r\nHost: t\r\nX: ",
                   b"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 9999\r\n\r\n")[i % 2])
    left, worst = set(connections), 0
    while left and time.monotonic() - start < 60:
        time.sleep(1)
        worst = max(worst, t.health())
        for c in list(left):
            try:
                c.send(b"a")
                c.setblocking(False)
                if c.recv(1 << 16) == b"":
                    raise ConnectionError
            except BlockingIOError:
                c.setblocking(True)
            except OSError:
                left.discard(c)
                c.close()
    print("slow: %d senders, the last one cut off after %.0f s, /health at most %.1f ms" %
          (n, time.monotonic() - start, worst * 1000))
    check(not left, "%d slow senders are still there" % len(left))


def malformed(t):
    rng, n = random.Random(1), t.n(10000)
    good = [t.request("/v1/completions", {"prompt": "ab", "max_tokens": 2, "stop": ["q"]}),
            t.request("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}],
                                               "max_tokens": 2, "stream": True}),
            t.request("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 2}}),
            b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n"]
    alphabet = [bytes([c]) for c in b"{}[]\",:0-.e\\\r\n \0\xff"] + [b"null", b"1e999", b"\r\n\r\n"]
    seen, memory, hung, wrong = {}, 0, 0, []
    for i in range(n):
        raw = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw))
            kind = rng.randrange(4)
            if kind == 0:
                raw[at] = rng.randrange(256)
            elif kind == 1:
                raw[at:at] = rng.choice(alphabet)
            elif kind == 2:
                del raw[at:at + rng.randint(1, 9)]
            else:
                raw[at:at] = raw[at:at + rng.randint(1, 40)]
        with t.connect(timeout=30) as c:
            try:
                c.sendall(raw)
                c.shutdown(socket.SHUT_WR)
                answer = c.recv(100)
            except TimeoutError:
                hung += 1
                continue
            except OSError:
                answer = b""
        seen[status(answer)] = seen.get(status(answer), 0) + 1
        # 505 is what RFC 9110 has for a version of HTTP other than 1.x, and for nothing else.
        other = re.match(rb"[\r\n]*[^\n]*HTTP/[02-9]\.", raw)
        if status(answer) >= 500 and not (status(answer) == 505 and other):
            wrong.append(bytes(raw[:80]))
        if i == n // 10:
            memory = t.resident()
    grown = (t.resident() - memory) / (1 << 20)
    print("malformed: %d requests, answers %s, memory %+.1f MiB" % (n, dict(sorted(seen.items())),
                                                                   grown))
    check(hung == 0, "%d requests hung" % hung)
    check(not wrong, "an answer of 5xx, to %r" % wrong[:3])
    check(grown < 8, "memory grew by 8 MiB")
    t.health()


def vanish(t):
    n = t.n(200)
    body = {"prompt": "Once upon a time", "max_tokens": 100, "ignore_eos": True}
    for i in range(n):
        with t.connect() as c:
            if i % 3 == 0:
                c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            c.sendall(t.request("/v1/completions", body, stream=i % 2 == 0))
            if i % 4 == 0:
                c.recv(200)
    took = t.quiet()
    print("vanish: %d clients left, all forgotten %s" %
          (n, "never" if took is None else "after %.2f s" % took))
    check(took is not None and took < 10, "requests of clients that left still run")


def hold_streams(t, n):
    """n streams that do not end: how many were open at once, and bytes that each of the second half
    took. What the engine touches once, however many there are, is of the first half."""
    body, open_ones, resident = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True}, [], []
    for i in range(n):
        if i in (n // 2, n - 1):
            time.sleep(1)
            resident.append(t.resident())
        open_ones.append(t.connect())
        open_ones[-1].sendall(t.request("/v1/completions", body, stream=True))
    held = t.metric("vllm:num_requests_running") + t.metric("vllm:num_requests_waiting")
    for c in open_ones:
        c.close()
    t.quiet()
    return held, (resident[-1] - resident[0]) / max(1, n - n // 2)


def read_streams(t, n, body, seconds):
    """n streams at once, read to their ends: bytes of each."""
    selector, got, over = selectors.DefaultSelector(), {}, 0
    for _ in range(n):
        c = t.connect()
        c.sendall(t.request("/v1/completions", body, stream=True))
        c.setblocking(False)
        got[c] = b""
        selector.register(c, selectors.EVENT_READ)
    until, worst = time.monotonic() + seconds, t.health()
    while over < n and time.monotonic() < until:
        for key, _ in selector.select(1):
            c = key.fileobj
            piece = c.recv(1 << 16)
            got[c] += piece
            if not piece or got[c].endswith(b"0\r\n\r\n") or (
                    got[c].startswith(b"HTTP/1.1 4") and got[c].endswith(b"}")):
                over += 1
                selector.unregister(c)
                c.close()
        worst = max(worst, t.health())
    return got.values(), worst


def streams(t):
    n = t.n(1000)
    held, each = hold_streams(t, n)
    answers, worst = read_streams(t, n, {"prompt": "Once", "max_tokens": 16, "ignore_eos": True},
                                  600)
    whole = sum(a.count(b"data: [DONE]\n\n") for a in answers)
    refused = sum(status(a) == 429 for a in answers)
    print("streams: %d held open, %.1f KiB each; %d read, %d whole, %d told to come again, /health "
          "at most %.1f ms" % (held, each / 1024, n, whole, refused, worst * 1000))
    check(whole + refused == n, "%d streams were neither whole nor refused" % (n - whole - refused))
    check(each < 16384, "an open stream takes 16 KiB")
    check(worst < 1, "/health takes a second beside streams")


def overload(t):
    seconds, body = max(5, 60 * t.scale), {"prompt": "Once", "max_tokens": 16, "ignore_eos": True}
    counts, slowest, lock = {}, [0.0], threading.Lock()
    until = time.monotonic() + seconds

    def client():
        while time.monotonic() < until:
            start = time.monotonic()
            with t.connect() as c:
                c.sendall(t.request("/v1/completions", body))
                code = status(c.recv(100))
            took = time.monotonic() - start
            with lock:
                counts[code] = counts.get(code, 0) + 1
                if code in (429, 503):
                    slowest[0] = max(slowest[0], took)
            if code in (429, 503):
                time.sleep(0.05)
    threads = [threading.Thread(target=client) for _ in range(t.n(400))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recovered = t.quiet(60)
    print("overload: %.0f s, answers %s, refusals within %.0f ms, quiet again after %s s" %
          (seconds, counts, slowest[0] * 1000, recovered and round(recovered, 2)))
    check(set(counts) <= {200, 429, 503}, "other answers than 200, 429 and 503")
    check(counts.get(200, 0) > 0, "nothing was answered")
    check(recovered is not None, "the server does not become quiet")


def main():
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("url")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--key", default="none")
    parser.add_argument("--only")
    parser.add_argument("--scale", type=float, default=1)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    t = Target(options)
    for run in (idle, slow, malformed, vanish, streams, overload):
        if options.only in (None, run.__name__):
            run(t)
            if options.pid is not None and not os.path.exists("/proc/%d" % options.pid):
                raise SystemExit("the server is gone")
    sys.exit(1 if FAILED else 0)


main()
