#!/usr/bin/env python3
"""nibble bench serve against a server of this test's own, good and bad. Nothing depends on how fast
either is: orders come from requests that wait for each other, numbers from the saved requests."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib
import mock_openai
from mock_openai import good, token, usage

STATS = ("mean", "median", "std", "min", "p90", "p95", "p99", "max")
KEYS = {"backend", "endpoint", "url", "model_id", "num_prompts", "request_rate", "burstiness",
        "max_concurrency", "seed", "exact_lengths", "duration", "completed", "failed", "aborted",
        "interrupted", "total_input_tokens", "total_output_tokens", "total_cached_tokens",
        "request_throughput", "request_goodput", "output_throughput", "total_token_throughput",
        "max_output_tokens_per_s", "max_concurrent_requests", "client_busy",
        "client_cpu_us_per_token", "errors", "status_codes", "flawed_streams", "stream_flaws"}
KEYS |= {"%s_%s_ms" % (s, n) for s in STATS for n in ("ttft", "tpot", "itl", "e2el", "start_delay")}
SMALL = ("--input-len", "12", "--output-len", "6", "--requests", "10")


def quantile(values, q):
    """numpy's percentile, method linear."""
    values = sorted(values)
    at = q * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def reference(values):
    mean = math.fsum(values) / len(values)
    return {"mean": mean, "median": quantile(values, 0.5), "min": min(values), "max": max(values),
            "std": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)),
            "p90": quantile(values, 0.9), "p95": quantile(values, 0.95),
            "p99": quantile(values, 0.99)}


class BenchServe(lib.Case):
    def serve(self, *args, **more):
        server = mock_openai.Server(*args, **more)
        self.addCleanup(server.__exit__)
        return server

    def bench(self, server, *args, code=0, env=None):
        """The result and the saved requests, in the order of their numbers."""
        saved = self.path("requests.jsonl")
        done = lib.nibble("bench", "serve", "--url", server.url, "--json", "--save-requests", saved,
                          "--force", *args, env=env)
        self.assertEqual(done.code, code, done.err)
        lines = lib.json_lines(done.out)
        self.assertEqual(len(lines), 1)
        self.assertEqual(set(lines[0]), KEYS)
        with open(saved) as f:
            records = lib.json_lines(f.read())
        self.assertEqual(len(records), lines[0]["num_prompts"])
        return lines[0], sorted(records, key=lambda r: r["index"])

    def plain(self, *args, **more):
        """Without the requests that would only be in the way of counting."""
        return self.bench(*args, "--warmup", "0", "--no-tokenize", **more)

    # ---- numbers ----

    def test_counts_of_a_good_server(self):
        for endpoint in ("completions", "chat"):
            server = self.serve()
            r, records = self.bench(server, *SMALL, "--endpoint", endpoint)
            self.assertEqual((r["completed"], r["failed"], r["aborted"]), (10, 0, 0))
            self.assertEqual(r["total_input_tokens"], 120)
            self.assertEqual(r["total_output_tokens"], 60)
            self.assertEqual(r["total_cached_tokens"], 10)
            self.assertTrue(r["exact_lengths"])
            self.assertEqual((r["model_id"], r["endpoint"]), ("mock", endpoint))
            self.assertEqual(sum(r["errors"].values()) + r["flawed_streams"], 0)
            self.assertEqual(set(r["stream_flaws"].values()), {0})
            self.assertEqual(len(server.requests), 11)  # one to warm up
            for record in records:
                self.assertEqual(len(record["itl_ms"]), 5)
                self.assertEqual((record["prompt_tokens"], record["output_tokens"]), (12, 6))
                self.assertEqual((record["result"], record["status"]), ("ok", 200))
            for body in server.requests:
                self.assertEqual((body["stream"], body["ignore_eos"], body["temperature"]),
                                 (True, True, 0))
                self.assertEqual(body["stream_options"], {"include_usage": True})
                self.assertEqual(body["max_tokens"], 6)
                self.assertEqual("prompt" in body, endpoint == "completions")
            self.assertEqual(len({json.dumps(body) for body in server.requests}), 11)

    def test_statistics_are_those_of_the_saved_requests(self):
        server = self.serve()
        r, records = self.bench(server, "--input-len", "5-30", "--output-len", "1-9", "--requests",
                                "60", "--concurrency", "5", "--goodput", "ttft:5,tpot:1,e2el:9")
        good_ones = 0
        lists = {"ttft": [], "tpot": [], "itl": [], "e2el": []}
        for record in records:
            self.assertEqual(record["output_tokens"], record["output_asked"])
            self.assertEqual(record["prompt_tokens"], record["input_asked"])
            lists["ttft"].append(record["ttft_ms"])
            lists["e2el"].append(record["e2el_ms"])
            lists["itl"] += record["itl_ms"]
            n = record["output_tokens"]
            self.assertEqual(record["tpot_ms"] is None, n == 1)
            if n > 1:
                lists["tpot"].append(record["tpot_ms"])
                self.assertAlmostEqual(record["tpot_ms"], (record["e2el_ms"] - record["ttft_ms"]) /
                                       (n - 1), places=9)
            self.assertGreaterEqual(record["e2el_ms"] + 1e-9,
                                    record["ttft_ms"] + math.fsum(record["itl_ms"]))
            good_ones += record["ttft_ms"] <= 5 and (record["tpot_ms"] or 0) <= 1 and \
                record["e2el_ms"] <= 9
        for name, values in lists.items():
            for stat, want in reference(values).items():
                self.assertAlmostEqual(r["%s_%s_ms" % (stat, name)], want,
                                       delta=1e-9 * (1 + abs(want)), msg=stat + " " + name)
        d = r["duration"]
        self.assertAlmostEqual(r["request_throughput"], 60 / d)
        self.assertAlmostEqual(r["request_goodput"], good_ones / d)
        self.assertAlmostEqual(r["output_throughput"] * d, r["total_output_tokens"])
        self.assertAlmostEqual(r["total_token_throughput"] * d,
                               r["total_output_tokens"] + r["total_input_tokens"], places=6)
        self.assertEqual(r["total_input_tokens"], sum(x["prompt_tokens"] for x in records))
        self.assertTrue(0 < r["client_busy"] <= 1 and r["client_cpu_us_per_token"] > 0)
        ends = max(x["start_s"] + x["e2el_ms"] / 1e3 for x in records)
        self.assertGreaterEqual(d, ends)
        seconds = {}
        for x in records:
            t = x["start_s"] + x["ttft_ms"] / 1e3
            for gap in [0] + x["itl_ms"]:
                t += gap / 1e3
                seconds[math.floor(t)] = seconds.get(math.floor(t), 0) + 1
        self.assertEqual(r["max_output_tokens_per_s"], max(seconds.values()))

    def test_table_for_people(self):
        out = self.ok("bench", "serve", "--url", self.serve().url, *SMALL, "--goodput",
                      "ttft:900000", "--rate", "1000", "-q")
        for label in ("Successful requests:  ", "Request rate configured (RPS):", "Request goodput",
                      "Output token throughput (tok/s):", "Time to first token (TTFT)",
                      "Inter-token latency (ITL)", "This client: busy", "ms late (p99)"):
            self.assertIn(label, out)
        self.assertRegex(out, r"Successful requests: +10\n")
        self.assertRegex(out, r"Total generated tokens: +60\n")

    # ---- how requests arrive ----

    def test_all_at_once_are_in_flight_together(self):
        server = self.serve()
        server.answer = mock_openai.gather(200)
        r, _ = self.plain(server, "--input-len", "3", "--output-len", "2", "--requests", "200")
        self.assertEqual((r["completed"], r["max_concurrent_requests"]), (200, 200))
        self.assertEqual((server.peak, r["request_rate"], r["max_concurrency"]), (200, "inf", None))

    def test_concurrency_is_kept_and_not_passed(self):
        server = self.serve()
        server.answer = mock_openai.gather(7)
        r, _ = self.plain(server, "--output-len", "3", "--requests", "40", "--concurrency", "7")
        self.assertEqual((r["completed"], server.peak), (40, 7))
        self.assertEqual((r["max_concurrent_requests"], r["max_concurrency"]), (7, 7))
        # Kept alive, but for one that is not free again yet when the next request goes out.
        self.assertLess(server.n_connections, 20)

    def test_poisson_gaps_repeat_by_seed_and_end_at_n_over_rate(self):
        def planned(*args):
            r, records = self.plain(self.serve(), "--input-len", "2", "--output-len", "1",
                                    "--requests", "100", "--rate", "400", *args)
            self.assertEqual(r["completed"], 100)
            self.assertEqual(r["request_rate"], 400)
            for record in records:
                self.assertGreaterEqual(record["start_s"], record["planned_s"])
            return [record["planned_s"] for record in records]
        first, again, other = planned(), planned("--seed", "0"), planned("--seed", "1")
        even, bursty = planned("--burstiness", "50"), planned("--burstiness", "0.1")
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

        def spread(times):
            gaps = [b - a for a, b in zip(times, times[1:])]
            return reference(gaps)["std"] / reference(gaps)["mean"]
        for times in (first, other, even, bursty):
            self.assertAlmostEqual(times[-1], 100 / 400, places=9)
            self.assertEqual(times, sorted(times))
        self.assertLess(spread(even), 0.3)
        self.assertTrue(0.6 < spread(first) < 1.5)
        self.assertGreater(spread(bursty), 1.8)

    def test_prompts_repeat_by_seed(self):
        def prompts(*args):
            server = self.serve()
            self.bench(server, *SMALL, "--concurrency", "1", "--warmup", "0", *args)
            return [body["prompt"] for body in server.requests]
        self.assertEqual(prompts(), prompts())
        self.assertFalse(set(prompts()) & set(prompts("--seed", "5")))

    def test_shared_prefixes(self):
        server = self.serve()
        r, _ = self.bench(server, *SMALL, "--concurrency", "1", "--warmup", "0", "--prefix-len",
                          "20", "--n-prefixes", "3")
        self.assertEqual(r["total_input_tokens"], 10 * 32)
        heads = [" ".join(body["prompt"].split()[:20]) for body in server.requests]
        self.assertEqual(len(set(heads)), 3)
        self.assertEqual(heads[:3] * 3, heads[:9])
        self.assertEqual(len({body["prompt"] for body in server.requests}), 10)

    def test_duration_ends_a_closed_loop(self):
        server = self.serve()
        r, records = self.plain(server, "--input-len", "2", "--output-len", "2", "--duration", "0.3",
                                "--concurrency", "3")
        self.assertGreaterEqual(r["completed"], 3)  # more, unless the machine is very busy
        self.assertEqual(r["completed"], r["num_prompts"])
        self.assertGreaterEqual(r["duration"], 0.3)
        self.assertEqual([x["index"] for x in records], list(range(len(records))))

    # ---- what is asked ----

    def test_prompts_from_a_file(self):
        lines = [{"prompt": "one two", "output_tokens": 3}, {"prompt": "three"},
                 {"conversations": [{"from": "system", "value": "be"},
                                    {"from": "human", "value": "four five"},
                                    {"from": "gpt", "value": "six"},
                                    {"from": "human", "value": "never asked"}]}]
        file = self.write("p.jsonl", "\n".join(json.dumps(x) for x in lines) + "\n\n")
        array = self.write("p.json", json.dumps(lines))
        for path in (file, array):
            server = self.serve()
            r, _ = self.plain(server, "--prompts", path, "--requests", "4", "--output-len", "5",
                              "--concurrency", "1")
            self.assertEqual([b["prompt"] for b in server.requests],
                             ["one two", "three", "four five", "one two"])
            self.assertEqual([b["max_tokens"] for b in server.requests], [3, 5, 5, 3])
            self.assertNotIn("ignore_eos", server.requests[0])
            self.assertEqual(r["total_input_tokens"], 3 + 2 + 3 + 3)
        server = self.serve()
        messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        chat = self.write("c.jsonl", json.dumps({"messages": messages}) + "\n" +
                          json.dumps(lines[2]) + "\n" + json.dumps(lines[1]))
        self.plain(server, "--prompts", chat, "--requests", "3", "--endpoint", "chat",
                   "--concurrency", "1", "--ignore-eos", "yes")
        self.assertEqual([b["messages"] for b in server.requests],
                         [messages, [{"role": "system", "content": "be"},
                                     {"role": "user", "content": "four five"}],
                          [{"role": "user", "content": "three"}]])
        self.assertTrue(server.requests[0]["ignore_eos"])

    def test_bad_prompt_files_are_refused_by_line(self):
        url = self.serve().url
        for text, want in (("", "no prompts"), ('{"prompt": "a"}\n{"prompt": 3}', "prompt 2: key"),
                           ("[]", "no prompts"), ('{"prompt": "a"}\n\n{bad', "line 3: not valid"),
                           ("[3]", "prompt 1: not a JSON object"), ("3", "line 1: not a JSON"),
                           ('{"messages": [{}]}', "need --endpoint chat"),
                           ('{"x": 1}', "none of 'prompt'"),
                           ('{"prompt": "a", "max_tokens": 0}', "outside 1 to"),
                           ('{"conversations": [{"from": "gpt", "value": "x"}]}', "does not begin"),
                           ('{"conversations": [{"from": 3}]}', "lacks 'from'"),
                           ('{"prompt": "\xff"}'.encode("latin-1"), "not valid JSON")):
            line = self.fails(1, "bench", "serve", "--url", url, "--prompts",
                              self.write("p.jsonl", text))
            self.assertIn(want, line)

    def test_key_body_and_backend(self):
        server = self.serve(owner="openai")
        env = lib.environment(OPENAI_API_KEY="from-the-environment")
        r, _ = self.plain(server, *SMALL, "--endpoint", "chat", "--body",
                          '{"top_p": 0.5, "temperature": 1}', env=env)
        self.assertEqual(r["backend"], "openai")
        body = server.requests[0]
        self.assertEqual((body["top_p"], body["temperature"]), (0.5, 1))
        self.assertEqual(body["max_completion_tokens"], 6)
        self.assertNotIn("max_tokens", body)
        self.assertNotIn("ignore_eos", body)
        self.assertEqual({h["authorization"] for h in server.headers},
                         {"Bearer from-the-environment"})
        server = self.serve(owner="llamacpp")
        r, _ = self.plain(server, *SMALL, "--api-key", "typed", "--model", "another", env=env)
        self.assertEqual((r["backend"], r["model_id"]), ("llama-server", "another"))
        self.assertEqual({h["authorization"] for h in server.headers}, {"Bearer typed"})
        self.assertTrue(server.requests[0]["ignore_eos"])

    def test_a_server_without_models_and_tokenizer(self):
        server = self.serve(tokenizer=False, models=False)
        self.assertIn("names no model (status 404)",
                      self.fails(3, "bench", "serve", "--url", server.url))
        done = lib.nibble("bench", "serve", "--url", server.url + "/v1/", "--model", "m", *SMALL)
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("about the lengths asked for: the server has no /tokenize", done.err)
        self.assertEqual(server.requests[0]["model"], "m")

    # ---- bad servers ----

    def ends(self, answer, result, n=6, code=3, also=()):
        """All requests end with one result; gives the records."""
        server = self.serve()
        server.answer = answer
        r, records = self.plain(server, "--output-len", "4", "--requests", str(n), "--concurrency",
                                "3", *also, code=code)
        self.assertEqual({record["result"] for record in records}, {result}, records[0])
        self.assertEqual((r["completed"], r["failed"]), (0, n))
        self.assertEqual(r["errors"][result], n)
        self.assertEqual(r["mean_ttft_ms"], 0)
        return records

    def flawed(self, answer, *flaws, endpoint="completions"):
        """Requests succeed, with these flaws."""
        server = self.serve()
        server.answer = answer
        r, records = self.plain(server, "--output-len", "4", "--requests", "3", "--endpoint",
                                endpoint)
        self.assertEqual(r["completed"], 3, records[0])
        for record in records:
            self.assertEqual(record["flaws"], list(flaws))
        self.assertEqual({k for k, v in r["stream_flaws"].items() if v}, set(flaws))
        self.assertEqual(r["flawed_streams"], 3 if flaws else 0)
        return records

    def test_statuses(self):
        async def answer(server, request, out):
            await out.status(429, b'{"error": {"message": "too \xc3\xa9 many"}}',
                             extra="Retry-After: 7\r\n")
        records = self.ends(answer, "status")
        self.assertEqual({(r["status"], r["retry_after_s"], r["message"]) for r in records},
                         {(429, 7, "too \u00e9 many")})

        async def html(server, request, out):
            await out.status(500, b"<h1>\xff\x1b[2J" + b"x" * 100000, "text/html")
        records = self.ends(html, "status")
        self.assertTrue(all(r["message"].startswith("HTTP 500: <h1>\ufffd\x1b") and
                            len(r["message"]) < 300 for r in records))

    def test_redirects_are_not_followed(self):
        other = self.serve()

        async def answer(server, request, out):
            await out.status(307, extra="Location: %s/v1/completions\r\n" % other.url)
        records = self.ends(answer, "status", also=("--api-key", "secret"))
        self.assertEqual(records[0]["status"], 307)
        self.assertEqual(other.paths, [])

    def test_some_fail_and_the_rest_counts(self):
        async def answer(server, request, out):
            if len(server.requests) % 3 == 0:
                await out.status(503, b"{}")
            else:
                await good(server, request, out)
        server = self.serve()
        server.answer = answer
        r, records = self.plain(server, *SMALL, "--concurrency", "1")
        self.assertEqual((r["completed"], r["failed"], r["status_codes"]), (7, 3, {"503": 3}))
        self.assertEqual(r["total_output_tokens"], 42)
        self.assertEqual([x["result"] for x in records[:3]], ["ok", "ok", "status"])

    def test_cut_streams(self):
        for n in range(3):
            async def answer(server, request, out):
                await out.begin()
                for _ in range(n):
                    await out.event(token(request, "x"))
                out.cut()
            self.ends(answer, "cut_stream")

        async def short(server, request, out):  # by the rules of HTTP, this one is whole
            await out.begin()
            await out.event(token(request, "x"))
            await out.end()
        self.ends(short, "cut_stream")

        async def nothing(server, request, out):
            out.cut()
        self.ends(nothing, "connect")

        async def headers(server, request, out):
            await out.raw(b"HTTP/1.1 200 OK\r\nContent-")
            out.cut()
        # libcurl says of some cut headers that they are whole, and of none that they are an answer.
        self.assertIn(self.plain_result(headers), ("connect", "cut_stream", "not_a_stream"))

    def test_streams_that_are_not(self):
        async def page(server, request, out):
            await out.status(200, b'{"choices": []}')
        self.ends(page, "not_a_stream")

        async def empty(server, request, out):
            await out.status(200, b"", "text/event-stream")
        self.ends(empty, "cut_stream")

        async def only_done(server, request, out):
            await out.begin()
            await out.event(token(request, None, "stop"))
            await out.event("[DONE]")
            await out.end()
        self.ends(only_done, "empty_stream")

    def test_broken_events(self):
        for bad in (b"data: {\n\n", b'data: {"choices": [}\n\n', b"data: \xff\xfe\n\n",
                    b'data: {"choices": [{"text": "\xc3"}]}\n\n',  # half a character
                    b'data: {"choices": [{"text": "\\ud800"}]}\n\n',
                    b'data: {"a": 1, "a": 2}\n\n', b"data: " + b"[" * 5000 + b"\n\n",
                    b"data: DONE\n\n", b"data: NaN\n\n"):
            async def answer(server, request, out):
                await out.begin()
                await out.event(token(request, "x"))
                await out.chunk(bad)
                await good(server, request, out)
            self.ends(answer, "broken_stream", n=3)

    def test_lines_without_end(self):
        async def answer(server, request, out):
            await out.begin()
            await out.chunk(b"data: ")
            while not out.writer.is_closing():
                await out.chunk(b"x" * 65536)
        self.ends(answer, "broken_stream", n=2)

        async def header(server, request, out):
            await out.raw(b"HTTP/1.1 200 OK\r\n")
            while not out.writer.is_closing():
                await out.raw(b"X-Another: one\r\n" * 1000)
        self.assertEqual(self.plain_result(header), "cut_stream")

        async def tokens(server, request, out):
            await out.begin()
            while not out.writer.is_closing():
                await out.event(token(request, "x"))
        self.ends(tokens, "broken_stream", n=2)

    def plain_result(self, answer):
        server = self.serve()
        server.answer = answer
        _, records = self.plain(server, "--requests", "1", code=3)
        return records[0]["result"]

    def test_an_error_event(self):
        async def answer(server, request, out):
            await out.begin()
            await out.event(token(request, "x"))
            await out.event({"error": {"message": "out of blocks", "code": 500}})
            await out.event("[DONE]")
            await out.end()
        self.assertEqual(self.ends(answer, "error_event")[0]["message"], "out of blocks")

    def test_silence_ends_at_the_timeout(self):
        async def answer(server, request, out):
            await out.begin()
            await out.event(token(request, "x"))
            await asyncio.Event().wait()
        self.ends(answer, "timeout", n=2, also=("--timeout", "0.5"))

    def test_streams_that_break_a_rule(self):
        def stream(*events):
            async def answer(server, request, out):
                await out.begin()
                for event in events:
                    await out.event(event(request) if callable(event) else event)
                await out.end()
            return answer

        def text(request):
            return token(request, "x")

        def end(request):
            return token(request, None, "length")

        def last(request):
            return token(request, "x", "length")

        def count(request):
            return usage(request, 3, 4)

        done, four = "[DONE]", [text] * 4
        self.flawed(stream(*four, end, count, done))
        self.flawed(stream(*[text] * 3, last, count, done))
        self.flawed(stream(*four, count, done), "no_finish_reason")
        self.flawed(stream(*four, end, end, count, done), "second_finish_reason")
        self.flawed(stream(*four, end, text, count, done), "token_after_finish")
        self.flawed(stream(*four, end, count), "no_done")
        self.flawed(stream(*four, end, count, done, text, done), "event_after_done")
        self.flawed(stream(*four, end, done), "no_usage")
        self.flawed(stream(*four, {"object": "ping"}, end, count, done), "unknown_event")
        records = self.flawed(stream(*four, end, lambda r: usage(r, 3, 9), done), "wrong_length")
        self.assertEqual(records[0]["output_tokens"], 9)

        async def open_end(server, request, out):
            await out.begin()
            for event in (*four, end, count):
                await out.event(event(request))
            await out.event(done)
            await out.chunk(b"data: more")
            await out.end()
        self.flawed(open_end, "unfinished_event")

        async def cut(server, request, out):
            await out.begin()
            for event in (*four, end, count):
                await out.event(event(request))
            await out.event(done)
            out.cut()
        self.flawed(cut, "cut_after_done")

    def test_silent_tokens_and_comments(self):
        """Empty text in the middle is a token whose bytes are held back; comments are nothing; and
        thoughts are tokens."""
        async def answer(server, request, out):
            await out.begin()
            await out.chunk(b": ping\n\n")
            await out.event(token(request, "", role="assistant"))
            await out.chunk(b": ping\r\n\r\n")
            await out.event(token(request, ""))
            await out.event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"},
                                          "finish_reason": None}], "usage": None})
            await out.event(token(request, "\0x"), end="\r\n\r\n")
            await out.event(token(request, "y", "stop"), end="\r\r")
            await out.event(usage(request, 1, 4))
            await out.event("[DONE]")
            await out.end()
        records = self.flawed(answer, endpoint="chat")
        self.assertEqual([len(r["itl_ms"]) for r in records], [3, 3, 3])

    def test_chunk_borders_anywhere(self):
        """Byte by byte, and in pieces of every small size: the events are the same."""
        size = [0]

        async def answer(server, request, out):
            size[0] += 1
            events = [token(request, "\u00e9\u4e2d%d" % i) for i in range(4)]
            events += [token(request, None, "length"), usage(request, 2, 4)]
            data = "".join("data: %s\n\n" % json.dumps(e, ensure_ascii=False) for e in events)
            data = (data + "data: [DONE]\n\n").encode()
            await out.begin()
            for at in range(0, len(data), size[0]):
                await out.chunk(data[at:at + size[0]])
            await out.end()
        server = self.serve()
        server.answer = answer
        r, records = self.plain(server, "--output-len", "4", "--requests", "40", "--concurrency", "4")
        self.assertEqual((r["completed"], r["flawed_streams"]), (40, 0))
        self.assertTrue(all(len(x["itl_ms"]) == 3 for x in records))

    # ---- the program ----

    def test_no_server(self):
        with socket.socket() as s:  # bound and not listening: nobody else gets the port
            s.bind(("127.0.0.1", 0))
            line = self.fails(3, "bench", "serve", "--url", "http://127.0.0.1:%d" %
                              s.getsockname()[1])
        self.assertIn("/v1/models: ", line)
        # What libcurl refuses by itself ends before anything is waited for.
        line = self.fails(3, "bench", "serve", "--url", "http://127.0.0.1:99999", timeout=30)
        self.assertIn("/v1/models: ", line)

    def test_a_first_request_that_fails_ends_all(self):
        server = self.serve()

        async def answer(server, request, out):
            await out.status(400, b'{"error": {"message": "context is 512"}}')
        server.answer = answer
        line = self.fails(3, "bench", "serve", "--url", server.url, *SMALL)
        self.assertIn("the first request failed: status: context is 512", line)
        self.assertEqual(len(server.requests), 1)

    def test_wrong_usage(self):
        url = ("--url", "http://127.0.0.1:1")
        for args, want in (
                (("--url", "ftp://x"), "not an address"), (("--url", "http://"), "not an address"),
                (("--url", "http://a b"), "not an address"), (("--url", ""), "not an address"),
                (("--rate", "0"), "--rate"), (("--rate", "1e3"), "--rate"), (("--rate", ""), "--rate"),
                (("--rate", "nan"), "--rate"), (("--input-len", "0"), "--input-len"),
                (("--input-len", "9-3"), "--input-len"), (("--output-len", "3-"), "--output-len"),
                (("--output-len", "1-2-3"), "--output-len"),
                (("--output-len", "99999999999999999999"), "--output-len"),
                (("--goodput", "ttft"), "--goodput"), (("--goodput", "ttft:1,ttft:2"), "--goodput"),
                (("--goodput", "ttft:1,"), "--goodput"), (("--goodput", "itl:1"), "--goodput"),
                (("--goodput", "ttft:-1"), "--goodput"), (("--goodput", "ttft:1.2.3"), "--goodput"),
                (("--duration", "1"), "needs --rate or --concurrency"),
                (("--burstiness", "2"), "belongs to --rate"), (("--body", "[]"), "not a JSON object"),
                (("--body", "{"), "--body"), (("--api-key", "a\nb"), "API key"),
                (("--prompts", "x", "--input-len", "3"), "random prompts"),
                (("operand",), "unexpected argument")):
            line = self.fails(2, "bench", "serve", *(() if "--url" in args else url), *args)
            self.assertIn(want, line)
            self.assertNotIn("a\\x0ab", line)

    def test_help_and_the_model_called_serve(self):
        for args in (("bench", "serve", "--help"), ("help", "bench", "serve")):
            self.assertIn("Usage: nibble bench serve [options]", self.ok(*args))
        self.assertIn("Usage: nibble bench [MODEL] [options]", self.ok("bench", "--help"))
        self.assertIn("./serve", self.fails(1, "bench", "./serve"))

    def test_interrupt_prints_what_there_is(self):
        server = self.serve()
        stuck = threading.Event()

        async def answer(server, request, out):
            if len(server.requests) <= 4:
                return await good(server, request, out)
            await out.begin()
            await out.event(token(request, "x"))
            stuck.set()
            await asyncio.Event().wait()
        server.answer = answer
        saved = self.path("r.jsonl")
        child = subprocess.Popen([lib.BINARY, "bench", "serve", "--url", server.url, "--json",
                                  "--warmup", "0", "--no-tokenize", "--requests", "9",
                                  "--concurrency", "1", "--save-requests", saved],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env=lib.environment())
        self.assertTrue(stuck.wait(60))
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        self.assertEqual(child.returncode, 5, err)
        r = json.loads(out)
        self.assertEqual((r["completed"], r["aborted"], r["failed"]), (4, 1, 0))
        self.assertTrue(r["interrupted"])
        with open(saved) as f:
            self.assertEqual([x["result"] for x in lib.json_lines(f.read())],
                             ["ok"] * 4 + ["aborted"])

    def test_a_thousand_streams(self):
        if not mock_openai.allow_streams(1000):
            self.skipTest("a process may not have 1,100 descriptors here")
        server = self.serve()
        server.answer = mock_openai.gather(1000)
        r, _ = self.plain(server, "--input-len", "4", "--output-len", "3", "--requests", "1000")
        self.assertEqual((r["completed"], server.peak, r["flawed_streams"]), (1000, 1000, 0))


if __name__ == "__main__":
    probe = subprocess.run([sys.argv[1], "bench", "serve", "--url", "http://127.0.0.1:1"],
                           capture_output=True)
    if b"built without libcurl" in probe.stderr:
        lib.skip("nibble was built without libcurl")
    lib.main()
