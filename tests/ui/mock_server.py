"""A server as the web page sees it, for tests of the page in a browser: the routes that it asks, with
answers that are chosen by the last message. Python's standard library only.

    server = MockServer(folder)   # build/.../ui: page.html and page.policy
    server.url, server.requests, server.metrics, server.report
    server.close()
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-right"
STARTED = time.time() - 660

# Each of these has to stay text, whatever a browser would make of it.
HOSTILE = [
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 2">',
    "<svg onload='window.hacked = 3'><a href=\"javascript:window.hacked=4\">x</a></svg>",
    "</p></div></main><style>* { display: none }</style>",
    "[a link](javascript:window.hacked=5) and [another](data:text/html,<script>window.hacked=6</script>)",
    '![a picture](http://127.0.0.1:9/x.png) and http://127.0.0.1:9/y.png"onmouseover="window.hacked=7',
    "`<b>` **<i>bold</i>** \u202etxet desrever\u202c \u2067abc\u2069 &lt;b&gt; &#60;",
    "```html\n<script>window.hacked = 8</script>\n\u202e code \u202c\n```",
    "| <b>a</b> | b |\n|---|---|\n| <img src=x onerror=window.hacked=9> | \u0000 |",
    "> quote <iframe srcdoc='<script>parent.hacked=10</script>'></iframe>",
    "- item <form action='http://127.0.0.1:9/'><input></form>",
    "{{constructor.constructor('window.hacked=11')()}} ${window.hacked=12} ]]> --> <!--",
]


def metrics_text(made=1000, alerts=(), hist=None, **gauges):
    """What /metrics says. `hist`: {name: ([bounds], [cumulative counts], sum)}."""
    label = '{model_name="tiny \\"q\\" \\\\ \\n",engine="0"'
    out = []

    def one(name, value, more=""):
        out.append("# HELP %s x" % name)
        out.append("# TYPE %s gauge" % name)
        out.append("%s%s%s} %s" % (name, label, more, value))

    one("vllm:generation_tokens_total", made)
    one("vllm:prompt_tokens_total", gauges.get("read", 400))
    one("vllm:num_requests_running", gauges.get("running", 3))
    one("vllm:num_requests_waiting", gauges.get("waiting", 7))
    one("vllm:kv_cache_usage_perc", gauges.get("usage", 0.625))
    one("vllm:prefix_cache_queries_total", 800)
    one("vllm:prefix_cache_hits_total", 200)
    one("vllm:num_preemptions_total", 5)
    one("vllm:request_success_total", 40, ',finished_reason="stop"')
    one("vllm:request_success_total", 2, ',finished_reason="length"')
    one("nibble:kv_fragmentation_ratio", 0.031)
    one("nibble:kv_blocks", 10, ',state="free"')
    one("nibble:http_rejects_total", 9, ',reason="auth"')
    one("nibble:client_disconnects_total", 4)
    for name, value in alerts:
        one("nibble:alert", value, ',name="%s"' % name)
    for name, (bounds, counts, total) in (hist or {}).items():
        for bound, n in zip(bounds, counts):
            out.append('%s_bucket%s,le="%s"} %d' % (name, label, bound, n))
        out.append("%s_sum%s} %s" % (name, label, total))
        out.append("%s_count%s} %d" % (name, label, counts[-1]))
    out += [
        "process_resident_memory_bytes 536870912",
        "process_cpu_seconds_total 12.5",
        "process_open_fds 17",
        "process_start_time_seconds %f" % STARTED,
        "this is no sample {",
        'broken{a="} 1',
        "",
    ]
    return "\n".join(out)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body, kind="application/json", headers=()):
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(code)
        for name, value in [
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Connection", "close"),
            *headers,
        ]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def refuse(self, code, message, headers=(), param=None):
        error = {"message": message, "type": "x", "param": param, "code": None}
        self.answer(code, json.dumps({"error": error}), headers=headers)

    def do_GET(self):
        mock = self.server.mock
        mock.requests.append(("GET", self.path, dict(self.headers), None))
        if self.path == "/":
            self.answer(
                200,
                mock.page,
                "text/html; charset=utf-8",
                [("Content-Security-Policy", mock.policy), ("X-Content-Type-Options", "nosniff")],
            )
        elif mock.need_key and self.headers.get("Authorization") != "Bearer " + KEY:
            self.refuse(401, "no such key")
        elif self.path == "/v1/models":
            self.answer(
                200,
                json.dumps(
                    {
                        "object": "list",
                        "data": [{"id": mock.model, "object": "model", "max_model_len": 2048}],
                    }
                ),
            )
        elif self.path == "/metrics":
            self.answer(
                200, mock.metrics() if callable(mock.metrics) else mock.metrics, "text/plain; version=0.0.4"
            )
        elif self.path == "/nibble/report" and mock.report is not None:
            self.answer(200, json.dumps(mock.report))
        else:
            self.refuse(404, "there is no such thing here")

    def do_POST(self):
        mock = self.server.mock
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        mock.requests.append(("POST", self.path, dict(self.headers), body))
        if self.path != "/v1/chat/completions":
            self.refuse(404, "no such route")
            return
        if mock.need_key and self.headers.get("Authorization") != "Bearer " + KEY:
            self.refuse(401, "no such key")
            return
        self.close_connection = True
        word = body["messages"][-1]["content"].split("\n")[0]
        try:
            getattr(self, "say_" + word, self.say_other)(mock, body)
        except (BrokenPipeError, ConnectionResetError):
            mock.gone.set()

    # ---- streams

    def begin(self, kind="text/event-stream; charset=utf-8"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, text):
        self.wfile.write(text if isinstance(text, bytes) else text.encode())
        self.wfile.flush()

    def piece(self, text=None, finish=None, end="\n\n", **more):
        delta = {} if text is None else {"content": text}
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return (
            "data: "
            + json.dumps(
                {"object": "chat.completion.chunk", "choices": choices, **more}, ensure_ascii=False
            )
            + end
        )

    def end_stream(self, made, prompt=11, cached=4, reason="stop"):
        self.send(self.piece(finish=reason))
        self.send(
            "data: "
            + json.dumps(
                {
                    "choices": [],
                    "usage": {
                        "prompt_tokens": prompt,
                        "completion_tokens": made,
                        "total_tokens": prompt + made,
                        "prompt_tokens_details": {"cached_tokens": cached},
                    },
                }
            )
            + "\n\ndata: [DONE]\n\n"
        )

    def say_other(self, mock, body):
        self.begin()
        self.send(self.piece(""))
        words = mock.words
        for word in words:
            self.send(self.piece(word))
            time.sleep(mock.pause)
        self.end_stream(len(words))

    def say_gated(self, mock, _):
        """Goes on only when the test says so: what is shown before the end can be looked at."""
        self.begin()
        for word in ["One ", "two ", "three."]:
            self.send(self.piece(word))
            if not mock.gate.acquire(timeout=20):
                return
        self.end_stream(3)

    def say_slow(self, mock, _):
        self.begin()
        for i in range(2000):
            self.send(self.piece("word%d " % i))
            time.sleep(0.02)

    def say_hostile(self, _, __):
        self.begin()
        text = "\n\n".join(HOSTILE)
        for at in range(0, len(text), 5):
            self.send(self.piece(text[at : at + 5]))
        self.end_stream(40)

    def say_long(self, _, __):
        self.begin()
        for i in range(64):
            self.send(self.piece("<b>" + "x" * (16384 - 3)))
        self.end_stream(64)

    def say_worst(self, _, __):
        self.begin()
        backticks = "".join("`" * (1 + i % 90) + " " for i in range(180))
        for mark in (
            "**a ",
            "*_a",
            "[",
            "[a](",
            "![a](http://",
            "> ",
            "- ",
            "  - a\n",
            "|",
            "| ",
            "\\",
            "<",
            "# ",
            "``` ",
            "~~~",
            "1. ",
            "h",
            "http://a",
            "_",
            "* ",
            "\u202e",
            "&",
            "\r",
            "~~a",
            backticks,
        ):
            self.send(self.piece((mark * (40000 // len(mark) + 1))[:40000] + "x\n\n"))
            self.send(self.piece("\n```\n\n~~~~\n\n"))
        self.end_stream(50)

    def say_pieces(self, _, __):
        """The same events, cut where nobody would: inside characters, and between CR and LF."""
        self.begin()
        data = (
            ": a comment\r\n\r\n"
            + self.piece("Gr\u00fc\u00dfe ", end="\r\n\r\n")
            + 'event: x\rid: 4\rdata: {"choices": [{"delta":\r\ndata: {"content": "on two lines "}}]}\r\n\r\n'
            + self.piece("\U0001f600 ", end="\r\r")
            + self.piece("\u4f60\u597d", end="\n\r\n")
            + "data:"
            + self.piece(".", finish="stop", end="")[6:]
            + "\n\n"
            + "data: [DONE]\n\n"
        ).encode()
        for at in range(len(data)):
            self.send(data[at : at + 1])
            time.sleep(0.001)

    def say_fenced(self, mock, _):
        self.begin()
        code = "".join("line %d of code, <b>\n" % i for i in range(1500))
        self.send(self.piece("Here:\n\n```c\n"))
        for at in range(0, len(code), 1000):
            self.send(self.piece(code[at : at + 1000]))
        self.send(self.piece("```\n\nDone."))
        self.end_stream(1500)

    def say_markdown(self, _, __):
        self.begin()
        self.send(
            self.piece(
                "# Title\n\nSome **bold _both_**, *it*, ~~old~~, `a*b*c` and snake_case_name, 2 * 3 * 4.\n\n"
                "1. one\n2. two\n   - inner\n   - more\n3. three\n\n> said\n\n---\n\n"
                "| a | b |\n|---|--:|\n| 1 | **2** |\n\n"
                "See [the site](https://example.org/a) and https://example.org/b.\n\n```\nx < y\n```\n"
            )
        )
        self.end_stream(60, reason="length")

    def say_busy(self, _, __):
        self.refuse(429, "the queue is full", [("Retry-After", "3")])

    def say_loading(self, _, __):
        self.refuse(503, "the model is being loaded")

    def say_wrong(self, _, __):
        self.refuse(400, "temperature: 9 is not in [0, 2]", param="temperature")

    def say_broken(self, _, __):
        self.begin()
        self.send(self.piece("So far"))

    def say_error(self, _, __):
        self.begin()
        self.send(self.piece("So far"))
        self.send('data: {"error": {"message": "the server is shutting down"}}\n\n')

    def say_nonsense(self, _, __):
        self.begin()
        self.send("data: {oops\n\n")

    def say_odd(self, _, __):
        """JSON of every wrong shape: nothing of it may break the page."""
        self.begin()
        for odd in (
            "null",
            "1",
            "[]",
            '"x"',
            "{}",
            '{"choices": 3}',
            '{"choices": [null]}',
            '{"choices": [{"delta": {"content": 5}}]}',
            '{"choices": [{"delta": null}]}',
            '{"usage": 7}',
            '{"usage": {"completion_tokens": "many"}}',
        ):
            self.send("data: %s\n\n" % odd)
        self.send(self.piece("fine", finish="stop") + "data: [DONE]\n\n")

    def say_whole(self, _, __):
        self.answer(
            200,
            json.dumps(
                {
                    "choices": [{"message": {"content": "All at once."}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 3},
                }
            ),
        )

    def say_empty(self, _, __):
        self.begin()
        self.end_stream(0)


class MockServer:
    def __init__(self, folder):
        with open(os.path.join(folder, "page.html"), "rb") as f:
            self.page = f.read()
        with open(os.path.join(folder, "page.policy"), encoding="ascii") as f:
            self.policy = f.read()
        self.requests = []
        self.model = "tiny <b>model</b>"
        self.metrics = metrics_text
        self.report = None
        self.need_key = False
        self.words = ["The ", "answer ", "is ", "**42**", "."]
        self.pause = 0
        self.gate = threading.Semaphore(0)
        self.gone = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.mock = self
        self.url = "http://127.0.0.1:%d/" % self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def asked(self, path="/v1/chat/completions"):
        return [r for r in self.requests if r[1] == path]

    def close(self):
        self.http.shutdown()
        self.http.server_close()
