#!/usr/bin/env python3
"""Requests that are almost right, against a running server: bodies of every route with values of the
wrong kind, size, depth and spelling; then many clients at once, of which some leave. Every answer has
to be what docs/serving.md says, the same question must get the same answer whatever else runs, and the
counters of /metrics have to add up afterwards. (Broken HTTP and memory are serve_torture.py's.)

    nibble serve MODEL --port 8000 --max-seqs 8 --ctx 512 --kv-memory 16M &
    scripts/serve_fuzz.py http://127.0.0.1:8000

    --requests N    how many of each kind (2,000)
    --seed S        another seed asks something else; the same one asks the same (1)

Prints what it saw; ends with 1 when something was broken. A small model makes it quick, little cache
makes sequences give theirs back.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import copy
import functools
import http.client
import json
import random
import socket
import sys
import threading
import time
import urllib.parse

TOOL = {"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "array", "items": {
    "type": "string", "maxLength": 3}, "maxItems": 2}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5, "n": 2,
            "frequency_penalty": -0.5, "repetition_penalty": 1.1, "stop": ["q", "zz"],
            "stop_token_ids": [7], "ignore_eos": True, "skip_special_tokens": False,
            "logit_bias": {"5": 3, "6": -100}}
OPENAI = dict(SAMPLING, seed=3, stream=True, stream_options={"include_usage": True}, user="u",
              include_stop_str_in_output=True, cache_salt="s", priority=1, min_tokens=1, max_tokens=4)
USER = {"role": "user", "content": [{"type": "text", "text": "t"}]}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]}
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES = [
    (COMPLETE, dict(OPENAI, prompt=["Once", "ab"], echo=True, logprobs=2, best_of=2, suffix="")),
    (COMPLETE, {"prompt": [1, 2, 3], "max_tokens": 9, "n": 3, "repetition_penalty": 1.3,
                "response_format": FORMAT}),
    (COMPLETE, {"prompt": "a", "max_tokens": 9, "structured_outputs": {"json": SCHEMA}}),
    (CHAT, dict(OPENAI, messages=[{"role": "system", "content": "s"}, USER, {
        "role": "assistant", "content": "a"}, USER], logprobs=True, top_logprobs=3)),
    (CHAT, {"messages": [USER, CALL, {"role": "tool", "tool_call_id": "c", "content": "2"}],
            "max_completion_tokens": 9, "tools": [TOOL], "tool_choice": "required", "stream": True}),
    (CHAT, {"messages": [USER], "max_tokens": 9, "stream": True, "response_format": FORMAT}),
    ("/v1/embeddings", {"input": ["ab", "c"], "encoding_format": "base64", "dimensions": 8}),
    ("/generate", {"text": ["Once", "b"], "sampling_params": dict(
        SAMPLING, max_new_tokens=3, min_new_tokens=1, sampling_seed=2), "return_logprob": True,
        "logprob_start_len": 0, "top_logprobs_num": 2, "stream": True, "rid": "r"}),
    ("/generate", {"input_ids": [[1, 2], [3]], "sampling_params": {
        "max_new_tokens": 9, "json_schema": json.dumps(SCHEMA)}}),
    ("/tokenize", {"prompt": "Hello", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": [USER], "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [1, 2, 3]})]
EXTRA = list(OPENAI) + ["guided_json", "guided_regex", "chat_template", "documents", "model", "regex",
                        "tool_choice", "functions", "prompt_logprobs", "truncate_prompt_tokens"]


class Raw(str):
    """JSON text that json.dumps would not write."""


HOSTILE = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 5e-324, 2**31, -2**31, 2**32, 2**53 + 1, 2**63 - 1,
    -2**63, "", " ", "a", "4", "true", "a\0b", "\"\\\n", "\u202e", "\ud7ff\ue000", "\U0001f600" * 3, "auto",
    "required", "<|im_end|>", "{{ 7 * 7 }}", "x" * 300, "y" * 5000, [], {}, [[]], [None], [0], [-1], [2**40],
    ["a"], ["", ""], [1.5], [True], [[1], []], [[[1]]], {"": 0}, {"a": {}}, {"type": "json_schema"},
    {"type": "function"}, {"0": 1}, {"5": "a"}, {"5": 1e308}, {"-1": 1}, {"99999999": 1}, list(range(300)),
    ["s"] * 200, {str(i): 1 for i in range(1100)}, [{"role": "user"}], [{"role": 1}], [{}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}],
    {"$ref": "http://127.0.0.1:1/"}, {"type": "string", "pattern": "^(a+)+$"}, {"minItems": 10**9},
    {"anyOf": [{}] * 400}, {"enum": []}, {"$ref": "#"}, {"type": ["string", "null"], "minLength": 10**9},
    Raw("1e999"), Raw("NaN"), Raw("-Infinity"), Raw("1" * 400), Raw("-9223372036854775809"), Raw("01"),
    Raw('"\\ud800"'), Raw('"\\u0000"'), Raw('"\\x"'), Raw("[" * 3000 + "]" * 3000), Raw("[" * 100000),
    Raw("{}{}"), Raw('{"a":1,"a":2}'), Raw("1.0" + "0" * 50 + "1"), Raw('"\udcff"'), Raw('"\t"'),
    Raw("[" * 900 + "]" * 900), Raw('{"a":' * 600 + "1" + "}" * 600)]
PIECES = [b"", b"\0", b"\xff", b"}", b'"', b"\\", b",", b"[", b"9" * 30]
NEEDED = "prompt messages input text input_ids tokens max_tokens sampling_params max_completion_tokens".split()


def spots(value, at=()):
    """Paths of everything inside."""
    if at:
        yield at
    for key, inner in (value.items() if isinstance(value, dict) else
                       enumerate(value) if isinstance(value, list) else ()):
        yield from spots(inner, at + (key,))


def dump(value):
    if isinstance(value, dict):
        return "{" + ",".join(json.dumps(k) + ":" + dump(v) for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return str(value) if isinstance(value, Raw) else json.dumps(value)


def mutate(rng, body):
    """A body, and the field that was changed when it was only one."""
    body = {k: v for k, v in copy.deepcopy(body).items() if rng.random() < 0.6 or k in NEEDED}
    field, n = None, rng.choice((0, 1, 1, 1, 2, 4))
    for _ in range(n):
        at, kind = rng.choice(list(spots(body)) or [("x",)]), rng.randrange(8)
        if kind == 0 or not body:
            at = (rng.choice(EXTRA),)
            body[at[0]] = copy.deepcopy(rng.choice(HOSTILE))
        else:
            inside = functools.reduce(lambda v, key: v[key], at[:-1], body)
            if kind == 1:
                del inside[at[-1]]
            elif kind == 2 and isinstance(inside, list):
                inside.extend(inside * rng.choice((1, 3, 40)))
            else:
                inside[at[-1]] = copy.deepcopy(rng.choice(HOSTILE))
        field = at[0]
    raw = bytearray(dump(body).encode("utf-8", "surrogateescape"))
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw) + 1)
            raw[at:at + rng.choice((0, 1, 4))] = rng.choice(PIECES)
        return bytes(raw), None
    if rng.random() < 0.03:
        return rng.choice((b"", b"null", b"[]", b"0", b'"a"', b"{", b"\xef\xbb\xbf{}", b"{}x")), None
    return bytes(raw), field if n == 1 else None


class Run:
    def __init__(self, o):
        url = urllib.parse.urlparse(o.url)
        self.at, self.o, self.n_broken = (url.hostname, url.port), o, 0
        self.seen, self.lock = collections.Counter(), threading.Lock()

    def check(self, condition, *what):
        if not condition:
            with self.lock:
                self.n_broken += 1
                if self.n_broken <= 20:
                    print("BROKEN:", " ".join(map(str, what))[:1000], flush=True)

    def ask(self, path, raw=None):
        """(status, kind, body)"""
        c = http.client.HTTPConnection(*self.at, timeout=600)
        with contextlib.closing(c):
            c.request("POST" if raw is not None else "GET", path, raw,
                      {"Authorization": "Bearer " + self.o.key})
            r = c.getresponse()
            body = r.read()
        with self.lock:
            self.seen[r.status] += raw is not None
        return r.status, r.getheader("Content-Type", ""), body

    def metrics(self):
        """Sums of samples by name, and by name and labels."""
        values = collections.Counter()
        for line in self.ask("/metrics")[2].decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] += float(value)
                values[name.split("{")[0]] += float(value) if "{" in name else 0
        return values

    def error(self, status, body, field, told):
        try:
            e = json.loads(body)["error"]
            good = e["message"] and isinstance(e["message"] + e["type"], str) and all(
                e[k] is None or isinstance(e[k], str) for k in ("param", "code"))
        except (ValueError, KeyError, TypeError):
            good, e = False, {}
        self.check(good, told, "no error object:", body[:200])
        if good and status == 400 and field is not None:
            self.check(e["param"] or field in e["message"] or "JSON" in e["message"],
                       told, field, "is not named:", e)

    def events(self, path, body, told):
        """The values of a whole, well-formed stream."""
        events = body.decode().split("\n\n")
        self.check(events.pop() == "" and all(e[:6] == "data: " or e[0] == ":" for e in events), told,
                   "events", body[-200:])
        values = [json.loads(e[6:]) for e in events if e[:7] == "data: {"]
        self.check(events[-1:] == ["data: [DONE]"] and not any("error" in v for v in values), told,
                   "the stream ends with", events[-1:])
        choices = [c for v in values for c in v.get("choices", ())] if path != "/generate" else []
        ends = collections.Counter(c["index"] for c in choices if c["finish_reason"] is not None)
        self.check(set(ends) == {c["index"] for c in choices} and set(ends.values()) <= {1}, told, ends)
        return values


def bodies(run, rng, n):
    for path, body in BODIES:
        status, _, answer = run.ask(path, json.dumps(body).encode())
        run.check(status == 200 or (b"knows no tools" in answer and "tools" in body), path, body, answer)
    for _ in range(n):
        path, body = rng.choice(BODIES)
        raw, field = mutate(rng, body)
        status, kind, answer = run.ask(path, raw)
        told = "%s %r -> %d:" % (path, raw[:400], status)
        run.check(status in (200, 400, 404, 413, 429, 503), told, answer[:300])
        if status >= 400:
            run.error(status, answer, field, told)
        elif kind.startswith("text/event-stream"):
            run.events(path, answer, told)
        else:
            json.loads(answer)
    print("bodies: %d, answers %s" % (n, dict(run.seen)))


def same(run, known, body, values):
    """An answer is that of its prompt, options and seed, not of its length or of what else runs."""
    texts = collections.defaultdict(str)
    for choice in (c for v in values for c in v["choices"]):
        texts[choice["index"]] += choice["text"]
    for i, text in texts.items():
        text = text.rstrip("\ufffd")  # a character that max_tokens cut
        key = (body["prompt"], body["repetition_penalty"], body["seed"], body["echo"], i)
        with run.lock:
            other = known.setdefault(key, text)
            known[key] = max(other, text, key=len)
        run.check(text.startswith(other) or other.startswith(text), body, "two answers:", text, other)


def visit(run, r, known):
    body = {"prompt": "Once upon a time " * r.choice((1, 1, 6)), "max_tokens": r.choice((1, 20, 120)),
            "n": r.choice((1, 1, 8)), "stream": r.random() < 0.7, "repetition_penalty": r.choice((1, 1.2)),
            "seed": r.choice((1, 2)), "logprobs": r.choice((None, 3)), "echo": r.random() < 0.2,
            "ignore_eos": True}
    raw = json.dumps(body).encode()
    if r.random() < 0.4:  # leaves, by a reset or not, in the midst of its request or of the answer
        with socket.create_connection(run.at) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((r.randrange(2), 0, 0, 0) + (0,) * 4))
            s.sendall(b"POST %s HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
                      % (COMPLETE.encode(), run.o.key.encode(), len(raw)) + raw[:r.choice((10, 9999))])
            time.sleep(r.random() * 0.05)
        return
    status, _, answer = run.ask(COMPLETE, raw)
    run.check(status in (200, 429) or b"context_length_exceeded" in answer, body, status, answer[:300])
    if status == 200:
        same(run, known, body, run.events(COMPLETE, answer, raw) if body["stream"] else [json.loads(answer)])


def chaos(run, rng, n):
    """Many clients at once, of which many leave; some want eight answers with penalties."""
    known, rngs = {}, [random.Random(rng.random()) for _ in range(24)]

    def work(r):
        for _ in range(n // len(rngs) + 1):
            try:
                visit(run, r, known)
            except (OSError, ValueError, http.client.HTTPException) as e:
                run.check(False, "a client failed: %r" % e)
    with concurrent.futures.ThreadPoolExecutor(len(rngs)) as pool:
        list(pool.map(work, rngs))
    print("chaos: %d clients, answers to those that stayed %s" % (n, dict(run.seen)))


def settle(run):
    busy = 1
    for _ in range(1500):
        m = run.metrics()
        busy = m["vllm:num_requests_running"] + m["vllm:num_requests_waiting"] + sum(
            v for k, v in m.items() if k.startswith("nibble:kv_blocks{") and 'state="used"' in k)
        if not busy:
            break
        time.sleep(0.02)
    run.check(not busy, "something still runs, waits, or holds blocks")
    for name in [k[:-6] for k in m if k.endswith("_count")]:
        top = sum(v for k, v in m.items() if k.startswith(name + "_bucket{") and 'le="+Inf"' in k)
        run.check(top == m[name + "_count"], name, "has", top, "in all, and counts", m[name + "_count"])
    ended = sum(v for k, v in m.items() if 'reason="stop"' in k or 'reason="length"' in k)
    made, whole = m["vllm:generation_tokens_total"], m["vllm:request_generation_tokens_sum"]
    run.check(ended == m["vllm:request_generation_tokens_count"] and whole <= made, ended, whole, made)
    print("settled: %d answers, %d tokens, %d preemptions, %d clients gone" % (
        ended, made, m["vllm:num_preemptions_total"], m["nibble:client_disconnects_total"]))
    run.seen.clear()


def main():
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("url")
    parser.add_argument("--key", default="none")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    run = Run(parser.parse_args())
    for kind in (bodies, chaos):
        kind(run, random.Random("%d %s" % (run.o.seed, kind.__name__)), run.o.requests)
        settle(run)
    sys.exit(1 if run.n_broken else 0)


main()
