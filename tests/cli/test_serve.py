"""nibble serve with a tiny model: what a user of it sees, from the first line to exit 0."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time

import lib


class Server:
    """A running nibble serve; its address is what it printed."""

    def __init__(self, case, *args, env=None):
        self.process = subprocess.Popen(
            [lib.BINARY, "serve", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=lib.environment() if env is None else env)
        case.addCleanup(self.kill)
        self.address = self.process.stdout.readline().decode().strip()
        if not self.address:
            case.fail(self.process.stderr.read().decode())
        self.port = int(self.address.rsplit(":", 1)[1]) if ":" in self.address[5:] else None

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        return code, self.process.stderr.read().decode()

    def ask(self, method, path, body=None, headers=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(c):
            c.request(method, path, json.dumps(body) if body is not None else None, headers or {})
            r = c.getresponse()
            return r.status, r.read().decode()

    def post(self, path, **body):
        status, text = self.ask("POST", path, body)
        return status, json.loads(text)

    def events(self, path, **body):
        status, text = self.ask("POST", path, dict(body, stream=True))
        assert status == 200, text
        events = [e for e in text.split("\n\n") if e and not e.startswith(":")]
        assert events[-1] == "data: [DONE]", events[-1]
        return [json.loads(e[len("data: "):]) for e in events[:-1]]

    def metric(self, name):
        for line in self.ask("GET", "/metrics")[1].splitlines():
            if line.startswith(name):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def wait_for(self, name, value):
        for _ in range(400):
            if self.metric(name) == value:
                return True
            time.sleep(0.02)
        return False


class Serve(lib.Case):
    def setUp(self):
        super().setUp()
        if "without libmicrohttpd" in lib.nibble("serve", "x").err:
            self.skipTest("this nibble was built without the server")

    def model(self, **more):
        path = self.path("tiny.gguf")
        lib.write_gguf(path, lib.endless_model() if more.pop("endless", False)
                       else lib.TinyModel(**more), "q8_0")
        return path

    def serve(self, *args, endless=False, **more):
        return Server(self, self.model(endless=endless), "--port", "0", "-t", "1", *args, **more)

    def test_answers_are_those_of_run(self):
        s = self.serve("--max-seqs", "8")
        text = "the cat and the dog"
        run = json.loads(self.ok("run", self.path("tiny.gguf"), text, "-n", "20", "--greedy",
                                 "--json", "-q"))
        status, got = s.post("/v1/completions", prompt=text, max_tokens=20, temperature=0)
        self.assertEqual(status, 200)
        self.assertEqual(got["choices"][0]["text"], run["text"])
        self.assertEqual(got["model"], "tiny.gguf")
        # The same again: found in the cache or not, streamed or not, beside others or not.
        results = []

        def one(kind):
            if kind == 0:
                results.append(s.post("/v1/completions", prompt=text, max_tokens=20,
                                      temperature=0)[1]["choices"][0]["text"])
            elif kind == 1:
                results.append("".join(e["choices"][0]["text"] for e in s.events(
                    "/v1/completions", prompt=text, max_tokens=20, temperature=0)))
            else:
                results.append(s.post("/generate", text=text, sampling_params={
                    "max_new_tokens": 20, "temperature": 0})[1]["text"])
        threads = [threading.Thread(target=one, args=(i % 3,)) for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(results, [run["text"]] * 12)
        self.assertTrue(s.wait_for("vllm:num_requests_running", 0))
        self.assertEqual(s.stop()[0], 0)

    def test_packed_caches_answer_as_run_does(self):
        text = "the cat and the dog, 1 2 3 4 5 6 7 8 9; " * 8  # more than what stays in f16
        for kv in ("int4", "int2"):
            s = self.serve("--kv", kv, "--max-seqs", "3", "--ctx", "256")
            run = json.loads(self.ok("run", self.path("tiny.gguf"), text, "-n", "20", "--greedy",
                                     "--kv", kv, "--ctx", "256", "--json", "-q"))
            self.assertGreater(run["prompt_tokens"], 224)
            for _ in range(2):
                got = s.post("/v1/completions", prompt=text, max_tokens=20, temperature=0, n=4)[1]
                self.assertEqual([c["text"] for c in got["choices"]], [run["text"]] * 4)
                self.assertEqual(got["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            self.assertEqual(s.stop()[0], 0)

    def test_a_seed_says_the_same_again(self):
        s = self.serve()
        ask = dict(messages=[{"role": "user", "content": "hello"}], max_tokens=16, temperature=1)
        first = s.post("/v1/chat/completions", **ask)[1]
        again = s.post("/v1/chat/completions", **ask, seed=first["seed"])[1]
        self.assertEqual(first["choices"][0]["message"], again["choices"][0]["message"])
        events = s.events("/v1/chat/completions", **ask, seed=first["seed"],
                          stream_options={"include_usage": True})
        text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
        self.assertEqual(text, first["choices"][0]["message"]["content"])
        self.assertEqual(events[-1]["usage"]["total_tokens"], first["usage"]["total_tokens"])

    def test_json_answers_are_json(self):
        s = self.serve()
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                  "additionalProperties": False}

        def ask(schema):
            return s.post("/v1/chat/completions", max_tokens=60, seed=3, messages=[
                {"role": "user", "content": "x"}], response_format={
                    "type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        status, got = ask(schema)
        self.assertEqual(status, 200, got)
        self.assertEqual(got["choices"][0]["finish_reason"], "stop")
        self.assertIsInstance(json.loads(got["choices"][0]["message"]["content"])["a"], bool)
        for wrong in ({"type": "nothing known"}, {"pattern": "^(a+)+$"},
                      {"$ref": "http://example.org/"}):
            status, got = ask(wrong)
            self.assertEqual((status, got["error"]["param"]), (400, "response_format"), wrong)
        self.assertEqual(s.ask("GET", "/health")[0], 200)

    def test_clients_that_leave_free_their_blocks(self):
        s = self.serve(endless=True)
        for stream in (True, False):
            body = json.dumps({"prompt": "a", "max_tokens": 200, "ignore_eos": True, "n": 4,
                               "stream": stream}).encode()
            fds = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(8)]
            for fd in fds:
                fd.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n"
                           % len(body) + body)
            for fd in fds:
                fd.close()
            self.assertTrue(s.wait_for("vllm:num_requests_running", 0))
            self.assertTrue(s.wait_for("vllm:num_requests_waiting", 0))
            self.assertTrue(s.wait_for('nibble:kv_blocks{model_name="tiny.gguf",engine="0",'
                                       'state="used"}', 0))

    def test_who_leaves_with_an_answer_has_not_left(self):
        s = self.serve()
        for _ in range(100):
            self.assertEqual(s.post("/tokenize", prompt="a")[0], 200)
            self.assertEqual(s.post("/tokenize", prompt=1)[0], 400)
        self.assertEqual(s.metric("nibble:client_disconnects_total"), 0)

    def test_an_open_stream_takes_little(self):
        """Nothing that it holds is as long as the context, or as the vocabulary."""
        with open(lib.BINARY, "rb") as f:
            if b"__asan_init" in f.read():
                self.skipTest("sanitizers keep memory of their own")
        s = self.serve("--max-seqs", "2", "--max-queue", "600", endless=True)
        body = json.dumps({"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True,
                           "repetition_penalty": 1.1, "stop": ["never"]}).encode()
        fds, resident = [], []
        for n in (200, 600):
            for _ in range(n - len(fds)):
                fds.append(socket.create_connection(("127.0.0.1", s.port)))
                fds[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\n"
                                b"Content-Length: %d\r\n\r\n" % len(body) + body)
            for _ in range(400):
                if s.metric("vllm:num_requests_running") + \
                        s.metric("vllm:num_requests_waiting") > n - 40:
                    break
                time.sleep(0.02)
            with open("/proc/%d/statm" % s.process.pid) as f:
                resident.append(int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE"))
        self.assertLess((resident[1] - resident[0]) / 400, 16 << 10)
        for fd in fds:
            fd.close()

    def test_it_stops_when_told(self):
        s = self.serve("--grace", "0", endless=True)
        body = b'{"prompt":"a","max_tokens":250,"n":32,"stream":true,"ignore_eos":true}'
        fd = socket.create_connection(("127.0.0.1", s.port))
        with contextlib.closing(fd):
            fd.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n"
                       % len(body) + body)
            self.assertIn(b"200 OK", fd.recv(100))
            for _ in range(3):  # as timeout(1) does, which signals the process and its group
                s.process.send_signal(signal.SIGTERM)
                time.sleep(0.01)
            code, _ = s.stop()
            rest = b""
            with contextlib.suppress(ConnectionError):
                while piece := fd.recv(1 << 16):
                    rest += piece
        self.assertEqual(code, 0)
        self.assertTrue(b"the server is stopping" in rest or b"[DONE]" in rest, rest[-300:])

    def test_ways_to_listen(self):
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
            line = self.fails(3, "serve", self.model(), "--port", str(taken.getsockname()[1]))
            self.assertIn("127.0.0.1 port %d" % taken.getsockname()[1], line)
        self.assertIn("--host", self.fails(2, "serve", self.model(), "--host", "no.such.invalid."))
        path = self.path("socket")
        s = Server(self, self.model(), "--unix", path, "-t", "1", "-q")
        self.assertEqual(s.address, "unix:" + path)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        fd = socket.socket(socket.AF_UNIX)
        with contextlib.closing(fd):
            fd.connect(path)
            fd.sendall(b"GET /v1/models HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            got = b""
            while piece := fd.recv(4096):
                got += piece
        self.assertIn(b"tiny.gguf", got)
        self.assertEqual(s.stop(signal.SIGINT)[0], 0)
        self.assertFalse(os.path.exists(path))

    def test_keys_and_names(self):
        keys = self.write("keys", "# mine\nsecond\n")
        s = self.serve("--api-key", "first", "--api-key-file", keys, "--served-name", "a\"b",
                       "--served-name", "alias", env=lib.environment(NIBBLE_API_KEY="third"))
        self.assertEqual(s.ask("GET", "/v1/models")[0], 401)
        for key in ("first", "second", "third"):
            status, text = s.ask("GET", "/v1/models", headers={"Authorization": "Bearer " + key})
            self.assertEqual((status, [m["id"] for m in json.loads(text)["data"]]),
                             (200, ['a"b', "alias"]))
        headers = {"Authorization": "Bearer first"}
        status, text = s.ask("GET", "/v1/models/alias", headers=headers)
        self.assertEqual((status, json.loads(text)["id"]), (200, "alias"))
        for name, want in (("alias", 200), ('a"b', 200), ("other", 404)):
            self.assertEqual(s.ask("POST", "/v1/completions", {"prompt": "a", "model": name},
                                   headers)[0], want)
        self.assertEqual(s.ask("GET", "/health")[0], 200)
        self.assertEqual(s.ask("GET", "/")[0], 200)

    def test_few_descriptors_are_enough(self):
        """Past the limit connections wait, and the server does not spin."""
        path = self.model()
        process = subprocess.Popen(["sh", "-c", 'ulimit -n 64; exec "$0" "$@"', lib.BINARY, "serve",
                                    path, "--port", "0", "-t", "1", "-q"], stdout=subprocess.PIPE,
                                   env=lib.environment())
        try:
            port = int(process.stdout.readline().decode().rsplit(":", 1)[1])
            fds = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            time.sleep(0.3)
            before = self.cpu(process.pid)
            time.sleep(1)
            self.assertLess(self.cpu(process.pid) - before, 0.5)
            for fd in fds:
                fd.close()
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(c):
                c.request("GET", "/health")
                self.assertEqual(c.getresponse().status, 200)
            process.terminate()
            self.assertEqual(process.wait(timeout=60), 0)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    @staticmethod
    def cpu(pid):
        with open("/proc/%d/stat" % pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_the_file_of_its_model_may_go(self):
        s = self.serve(endless=True)
        path = self.path("tiny.gguf")
        ask = {"prompt": "the cat and the dog", "max_tokens": 30, "temperature": 0}
        want = s.post("/v1/completions", **ask)[1]["choices"][0]["text"]

        def overwritten():
            with open(path, "r+b") as f:
                f.write(b"\xff" * os.path.getsize(path))

        def replaced():
            lib.write_gguf(self.path("other.gguf"), lib.TinyModel(seed=9), "q8_0")
            os.replace(self.path("other.gguf"), path)

        for happens in (overwritten, lambda: os.truncate(path, 0), replaced,
                        lambda: os.remove(path)):
            happens()
            # Nothing of it is found in the cache: it is computed, from what was read at the start.
            got = s.post("/v1/completions", cache_salt=str(happens), **ask)[1]
            self.assertEqual(got["choices"][0]["text"], want)
            self.assertEqual(s.post("/v1/chat/completions", max_tokens=4, messages=[
                {"role": "user", "content": "a dog, 123!"}])[0], 200)
        self.assertEqual(s.stop()[0], 0)

    def test_calls_hold_to_their_schema(self):
        plain = lib.CHAT_TEMPLATE
        lib.CHAT_TEMPLATE = ("{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}" + plain)
        self.addCleanup(setattr, lib, "CHAT_TEMPLATE", plain)
        s = Server(self, self.model(n_ctx=1024), "--port", "0", "-t", "1")
        tool = {"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"to": {"enum": ["Oslo", "Rome"]}, "n": {
                "$ref": "#/$defs/few"}}, "required": ["to", "n"],
            "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 9}}}}}
        ask = {"messages": [{"role": "user", "content": "a"}], "tools": [tool], "temperature": 1,
               "max_tokens": 500}
        for seed, choice in enumerate(["required", {"type": "function",
                                                    "function": {"name": "f"}}] * 2):
            status, got = s.post("/v1/chat/completions", seed=seed, tool_choice=choice, **ask)
            self.assertEqual(status, 200, got)
            message = got["choices"][0]["message"]
            self.assertEqual(got["choices"][0]["finish_reason"], "tool_calls")
            self.assertIsNone(message["content"])
            [call] = message["tool_calls"]
            given = json.loads(call["function"]["arguments"])
            self.assertIn(given["to"], ("Oslo", "Rome"))
            self.assertTrue(1 <= given["n"] <= 9)
            events = s.events("/v1/chat/completions", seed=seed, tool_choice=choice, **ask)
            pieces = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", [])]
            self.assertEqual("".join(c["function"]["arguments"] for c in pieces),
                             call["function"]["arguments"])
        self.assertEqual(s.post("/v1/chat/completions", tools=[tool], tool_choice="required",
                                messages=[{"role": "user", "content": "a"}], max_tokens=1024)[0], 400)
        self.assertEqual(s.stop()[0], 0)

    def test_hostile_schemas_are_refused(self):
        s = self.serve()
        deep = {"type": "integer"}
        for _ in range(900):
            deep = {"type": "array", "items": deep, "minItems": 1}
        for schema in ({"type": "frob"}, {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "file:///etc/passwd"},
                       {"$ref": "#"}, {"type": "array", "minItems": 10 ** 9},
                       {"type": "string", "pattern": "^(a+)+$"},
                       {"type": "string", "pattern": "(" * 5000 + ")" * 5000}, deep,
                       {"type": "object", "properties": {"p%d" % i: {} for i in range(600)}},
                       {"anyOf": [{"type": "object", "properties": {str(i): {}}} for i in range(99)]}):
            status, got = s.post("/v1/completions", prompt="a", response_format={
                "type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
            self.assertEqual(status, 400, str(schema)[:80])
            self.assertIn("response_format", got["error"]["param"])
            self.assertIsNone(got["error"]["code"])
            status, got = s.post("/generate", text="a",
                                 sampling_params={"json_schema": json.dumps(schema)})
            self.assertEqual(status, 400, str(schema)[:80])
        self.assertEqual(s.stop()[0], 0)

    def test_embeddings_do_not_depend_on_company(self):
        text = "the cat and the dog and the cat on the mat "
        texts = [text[i:] + text * (i % 4) for i in range(20)]
        seen = {}
        for how in ("mean", "last"):
            s = self.serve("--pooling", how, "--step-tokens", "16", "--kv-memory", "128K",
                           "--max-seqs", "6")
            together = []
            beside = [threading.Thread(target=s.post, args=("/v1/completions",), kwargs={
                "prompt": t, "max_tokens": 40, "ignore_eos": True}) for t in texts[:6]]
            for t in beside:
                t.start()
            status, got = s.post("/v1/embeddings", input=texts)
            self.assertEqual(status, 200, got)
            together = [d["embedding"] for d in got["data"]]
            for t in beside:
                t.join()
            alone = [s.post("/v1/embeddings", input=t)[1]["data"][0]["embedding"] for t in texts]
            self.assertEqual(together, alone)
            self.assertEqual(len(alone[0]), 64)
            self.assertNotEqual(alone[0], alone[1])
            self.assertTrue(all(abs(sum(x * x for x in v) - 1) < 1e-5 for v in alone))
            seen[how] = alone[0]
            self.assertEqual(s.stop()[0], 0)
        self.assertNotEqual(seen["mean"], seen["last"])

    def test_the_model_may_say_how_to_pool(self):
        folder = self.path("folder")
        lib.write_hf(folder, lib.TinyModel())
        os.mkdir(os.path.join(folder, "1_Pooling"))
        seen = {}
        for name, text in (("mean", '{"pooling_mode_mean_tokens": true}'),
                           ("last", '{"pooling_mode_lasttoken": true}'),
                           ("cls", '{"pooling_mode_cls_token": true}'), ("broken", "[")):
            with open(os.path.join(folder, "1_Pooling", "config.json"), "w") as f:
                f.write(text)
            s = Server(self, folder, "--port", "0", "-t", "1")
            seen[name] = s.post("/v1/embeddings", input="the cat")[1]["data"][0]["embedding"]
            self.assertEqual("embeddings are the last" in s.stop()[1], name in ("cls", "broken"))
        self.assertNotEqual(seen["mean"], seen["last"])
        self.assertEqual(seen["cls"], seen["last"])

    def test_a_cache_smaller_than_the_context(self):
        # Keys and values of 2 layers, 2 heads, 16 dimensions of 4 bytes: 16 KiB for 32 tokens.
        s = self.serve("--kv-memory", "64K", "--kv", "f32")
        room = json.loads(s.ask("GET", "/v1/models")[1])["data"][0]["max_model_len"]
        self.assertEqual(room, 128)
        chat = {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
        status, got = s.post("/v1/chat/completions", **chat)
        self.assertEqual(status, 200, got)
        self.assertEqual(got["usage"]["total_tokens"], room)
        status, got = s.post("/v1/chat/completions", max_tokens=room, **chat)
        self.assertEqual(status, 400)
        self.assertEqual(got["error"]["code"], "context_length_exceeded")
        self.assertEqual(got["error"]["param"], "max_tokens")
        self.assertIn("the KV cache has room for %d tokens" % room, got["error"]["message"])
        self.assertIn("--kv-memory", s.stop()[1])

    def test_guesses_leave_answers_alone(self):
        """From a draft model, and from what a text repeats: the same answers, and metrics of both."""
        text = "the cat and the dog and the cat and the dog and the"
        asks = [dict(prompt=text[i:], max_tokens=40, temperature=t, seed=i, logit_bias={"70": 3 * t})
                for i, t in enumerate((0, 0.7, 1.2))]

        def answers(s):
            return [s.post("/v1/completions", **a)[1]["choices"][0]["text"] for a in asks]
        plain = self.serve("--max-seqs", "4")
        want = answers(plain)
        self.assertEqual(plain.metric("vllm:spec_decode_num_draft_tokens_total"), 0)
        path = self.path("tiny.gguf")
        for how in (["--draft-model", path, "--draft-tokens", "4"], ["--speculate", "ngram:5"]):
            s = self.serve("--max-seqs", "4", *how)
            self.assertEqual(answers(s), want)
            self.assertTrue(s.wait_for("vllm:num_requests_running", 0))
            drafts, guessed, right = (s.metric("vllm:spec_decode_num_%s_total" % n)
                                      for n in ("drafts", "draft_tokens", "accepted_tokens"))
            first = s.metric('vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny.gguf",'
                             'engine="0",position="0"}')
            self.assertTrue(0 < drafts < guessed and 0 < first <= right <= guessed, (drafts, guessed, first, right))
            if how[0] == "--draft-model":
                self.assertEqual(right, guessed)
        done = lib.nibble("serve", path, "--dry-run", "--draft-model", path)
        self.assertEqual((done.code, done.out), (0, ""))
        self.assertIn(", draft model ", done.err)

    def test_a_plan_can_be_had_alone(self):
        done = lib.nibble("serve", self.model(), "--dry-run", "--kv", "int8")
        self.assertEqual((done.code, done.out), (0, ""))
        self.assertIn("KV cache", done.err)
        self.assertIn("blocks of 32 tokens)", done.err)
        done = lib.nibble("serve", self.model(), "--dry-run", "--kv", "int2")
        self.assertRegex(done.err, r"\(int2, [0-9]+ blocks of 32 tokens, and [0-9.]+ [kM]B for "
                                   r"recent ones in f16\)")


lib.main()
