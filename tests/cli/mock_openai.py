"""A server that speaks enough of OpenAI's API to be measured, and can be told to speak it badly.

One thread with an event loop, so that a thousand streams are no trouble. Nothing in it waits for a
time: where a test needs an order, requests wait for each other (`gather`).

    with mock_openai.Server() as server:
        server.url                       # http://127.0.0.1:PORT
        server.answer = function         # async (server, request, out): instead of a good stream
        server.requests                  # bodies of completions and chats, in order of arrival
"""

import asyncio
import json
import resource
import threading


class Request:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.raw = method, path, headers, body
        self.body = json.loads(body) if body else None
        self.chat = path == "/v1/chat/completions"
        self.n = 0 if not self.body else self.body.get("max_tokens") or \
            self.body.get("max_completion_tokens") or 0


class Out:
    """The answer: raw bytes, or events in chunks of the transfer encoding."""

    def __init__(self, writer):
        self.writer = writer
        self.keep = True

    async def raw(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def status(self, code, body=b"", kind="application/json", extra=""):
        await self.raw(("HTTP/1.1 %d Whatever\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n"
                        % (code, kind, len(body), extra)).encode() + body)

    async def begin(self, kind="text/event-stream"):
        await self.raw(("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
                        % kind).encode())

    async def chunk(self, data):
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, value, end="\n\n"):
        text = value if isinstance(value, str) else json.dumps(value)
        await self.chunk(("data: " + text + end).encode())

    async def end(self):
        await self.raw(b"0\r\n\r\n")

    def cut(self):
        """Ends the connection in the middle of what is being sent."""
        self.keep = False
        self.writer.close()


def token(request, text, reason=None, role=None):
    if request.chat:
        delta = {} if text is None else {"content": text}
        if role:
            delta["role"] = role
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
    else:
        choice = {"index": 0, "text": text or "", "finish_reason": reason}
    return {"id": "x", "object": "chunk", "model": "mock", "choices": [choice]}


def usage(request, n_prompt, n_output, cached=None):
    u = {"prompt_tokens": n_prompt, "completion_tokens": n_output,
         "total_tokens": n_prompt + n_output}
    if cached is not None:
        u["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"id": "x", "object": "chunk", "model": "mock", "choices": [], "usage": u}


def tokens_of(text):
    """A tokenizer with which words of up to five letters are one token, longer ones two."""
    return [part for word in text.split() for part in ([word] if len(word) < 6 else
                                                       [word[:5], word[5:]])]


def prompt_of(body):
    if "prompt" in body:
        return body["prompt"]
    return " ".join(m["content"] for m in body["messages"])


async def good(server, request, out):
    """What a good server does. The end comes with an event of its own, as most have it."""
    await out.begin()
    if request.chat:
        await out.event(token(request, "", role="assistant"))
    for i in range(request.n):
        await out.event(token(request, " w%d" % i))
    await out.event(token(request, None, "length"))
    n_prompt = len(tokens_of(prompt_of(request.body))) + (0 if request.chat else 1)
    await out.event(usage(request, n_prompt, request.n, cached=1))
    await out.event("[DONE]")
    await out.end()


def gather(n):
    """Answers nobody before n requests are there."""
    arrived = []
    ready = []

    async def answer(server, request, out):
        if not ready:
            ready.append(asyncio.Event())
        arrived.append(request)
        if len(arrived) >= n:
            ready[0].set()
        await ready[0].wait()
        await good(server, request, out)
    return answer


def allow_streams(n):
    """Room for n connections, where shells allow fewer descriptors than the system. False: none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = n + 100 if hard == resource.RLIM_INFINITY else min(hard, n + 100)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most >= n + 100


class Server:
    def __init__(self, tokenizer=True, models=True, owner="mock"):
        self.answer = good
        self.tokenizer, self.models, self.owner = tokenizer, models, owner
        self.requests, self.paths, self.headers = [], [], []
        self.n_tokenized = 0
        self.in_flight = self.peak = 0
        self.n_connections = 0
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self.thread.start()
        started.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._stop()))
        self.thread.join()
        self.loop.close()

    async def _stop(self):
        self.listener.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections close in the loop's next turn
        self.loop.stop()

    def _run(self, started):
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(lambda loop, context: None)
        self.listener = self.loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096))
        self.url = "http://127.0.0.1:%d" % self.listener.sockets[0].getsockname()[1]
        started.set()
        self.loop.run_forever()

    async def _serve(self, reader, writer):
        self.n_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in
                           (line.partition(":") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                out = Out(writer)
                await self._answer(Request(method, path, headers, body), out)
                if not out.keep:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, request, out):
        self.paths.append(request.path)
        self.headers.append(request.headers)
        if request.path == "/v1/models" and self.models:
            await out.status(200, json.dumps(
                {"object": "list", "data": [{"id": "mock", "object": "model",
                                             "owned_by": self.owner}]}).encode())
        elif request.path == "/tokenize" and self.tokenizer:
            self.n_tokenized += 1
            tokens = tokens_of(request.body["prompt"])
            if request.body["add_special_tokens"]:
                tokens.insert(0, "<s>")
            await out.status(200, json.dumps({"tokens": list(range(len(tokens)))}).encode())
        elif request.path in ("/v1/completions", "/v1/chat/completions"):
            self.requests.append(request.body)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                await self.answer(self, request, out)
            finally:
                self.in_flight -= 1
        else:
            await out.status(404, b'{"error": {"message": "no such route"}}')
