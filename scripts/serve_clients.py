#!/usr/bin/env python3
"""The clients that people use, against a server: the official openai clients for Python and for
JavaScript, schemathesis over /openapi.json, and promtool over /metrics. What is not installed is
named and left out.

    nibble serve MODEL --port 8000 &
    scripts/serve_clients.py http://127.0.0.1:8000

    --key KEY            as --api-key of the server
    --examples N         requests that schemathesis makes for each route (30)
    --node-modules DIR   folder whose node_modules has the package openai
    --promtool FILE      where promtool is, if not on the PATH

Ends with 1 when a client failed, and with 77 when none was there.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request

JAVASCRIPT = r"""
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: process.env.KEY });
function must(condition, what) { if (!condition) { throw new Error(what); } }
const models = await client.models.list();
const model = models.data[0].id;
const messages = [{ role: "user", content: "Say hello." }];
const whole = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0 });
must(whole.choices[0].message.role === "assistant", "role");
const stream = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0,
    stream: true, stream_options: { include_usage: true } });
let text = "", finishes = 0, usage = null;
for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    finishes += chunk.choices[0]?.finish_reason ? 1 : 0;
    usage = chunk.usage ?? usage;
}
must(text === whole.choices[0].message.content, "the stream says something else");
must(finishes === 1 && usage.completion_tokens === whole.usage.completion_tokens, "usage");
const old = await client.completions.create({ model, prompt: "Hello", max_tokens: 4, logprobs: 2 });
must(old.choices[0].logprobs.tokens.length === 4 || old.choices[0].finish_reason === "stop", "logprobs");
const vectors = await client.embeddings.create({ model, input: ["Hello", "Good"] });
must(vectors.data.length === 2 && vectors.data[1].embedding.length > 1, "embeddings");
const length = Math.hypot(...vectors.data[0].embedding);
must(Math.abs(length - 1) < 1e-5, "an embedding is " + length + " long");
try {
    await client.chat.completions.create({ model: "none", messages });
    must(false, "a model that is not there answers");
} catch (e) { must(e.status === 404, "404: " + e); }
console.log("ok");
"""


def need(condition, what):
    if not condition:
        raise SystemExit("openai for Python: " + what)


def python_tools(openai, client, ask):
    """A model whose template knows no tools says so; with any other a call can be had."""
    tool = {"type": "function", "function": {
        "name": "weather", "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]},
                                                        "days": {"type": "integer", "minimum": 1,
                                                                 "maximum": 9}},
                       "required": ["city", "days"]}}}
    ask = dict(ask, tools=[tool], max_tokens=100)
    try:
        client.chat.completions.create(**ask)
    except openai.BadRequestError as e:
        need("knows no tools" in str(e), "tools: %s" % e)
        print("openai for Python: this model knows no tools")
        return
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        whole = client.chat.completions.create(**ask, tool_choice=choice).choices[0]
        call = whole.message.tool_calls[0]
        given = json.loads(call.function.arguments)
        need(whole.finish_reason == "tool_calls" and call.function.name == "weather", "a call")
        need(given["city"] in ("Oslo", "Rome") and 1 <= given["days"] <= 9, "arguments of a call")
        name, text, finish = "", "", None
        for chunk in client.chat.completions.create(**ask, tool_choice=choice, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or []:
                name += piece.function.name or ""
                text += piece.function.arguments or ""
            finish = chunk.choices[0].finish_reason or finish
        need((name, text, finish) == ("weather", call.function.arguments, "tool_calls"),
             "a call in a stream")
    told = ask["messages"] + [whole.message.model_dump(exclude_none=True),
                              {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    after = client.chat.completions.create(**dict(ask, messages=told))
    need(after.usage.prompt_tokens > 0, "the result of a call")


def python_client(options):
    import openai
    client = openai.OpenAI(base_url=options.url + "/v1", api_key=options.key, max_retries=0)
    model = client.models.list().data[0].id
    need(client.models.retrieve(model).id == model, "retrieve")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello!"}]
    ask = dict(model=model, messages=messages, max_tokens=12, temperature=0)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    need(len(whole.choices[0].logprobs.content[0].top_logprobs) == 2, "top_logprobs")
    text, finishes, usage = "", 0, None
    for chunk in client.chat.completions.create(**ask, stream=True,
                                                stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finishes += choice.finish_reason is not None
        usage = chunk.usage or usage
    need(text == whole.choices[0].message.content, "the stream says something else")
    need(finishes == 1 and usage == whole.usage or usage.total_tokens == whole.usage.total_tokens,
         "usage of the stream")
    several = client.completions.create(model=model, prompt=["Hello", "Good"], n=2, max_tokens=5,
                                        temperature=1, seed=7, logprobs=1, echo=True)
    need([c.index for c in several.choices] == [0, 1, 2, 3], "indices")
    again = client.completions.create(model=model, prompt=["Hello", "Good"], n=2, max_tokens=5,
                                      temperature=1, seed=7)
    need([c.text.removeprefix(p) for c, p in zip(several.choices, ["Hello"] * 2 + ["Good"] * 2)] ==
         [c.text for c in again.choices], "the same seed says something else")
    need(client.completions.create(model=model, prompt=[5, 6], max_tokens=3,
                                   extra_body={"ignore_eos": True}).usage.completion_tokens == 3,
         "ignore_eos")
    # The client asks for base64 by itself, and decodes it.
    texts = ["Hello", "Good morning", "Hello"] + ["number %d" % i for i in range(100)]
    vectors = client.embeddings.create(model=model, input=texts)
    need([v.index for v in vectors.data] == list(range(len(texts))), "indices of embeddings")
    first, dims = list(vectors.data[0].embedding), len(vectors.data[0].embedding)
    need(abs(sum(x * x for x in first) - 1) < 1e-5, "an embedding is not of length 1")
    need(first == list(vectors.data[2].embedding), "one text has two embeddings")
    plain = client.embeddings.create(model=model, input="Hello", encoding_format="float")
    need(plain.data[0].embedding == first or
         max(abs(a - b) for a, b in zip(plain.data[0].embedding, first)) < 1e-7,
         "float and base64 differ")
    need(len(client.embeddings.create(model=model, input=[5, 6], dimensions=dims // 2)
             .data[0].embedding) == dims // 2, "dimensions")
    python_tools(openai, client, ask)
    for kind, wrong in ((openai.NotFoundError, dict(ask, model="none")),
                        (openai.BadRequestError, dict(ask, temperature=7)),
                        (openai.BadRequestError, dict(ask, max_tokens=10 ** 8))):
        try:
            client.chat.completions.create(**wrong)
            need(False, "no %s" % kind)
        except kind:
            pass
    with client.chat.completions.create(**dict(ask, max_tokens=200), stream=True) as stream:
        next(iter(stream))
    return "openai %s for Python: ok" % openai.__version__


def javascript_client(options):
    node = shutil.which("node")
    folder = options.node_modules
    if node is None or folder is None or not os.path.isdir(os.path.join(folder, "node_modules")):
        return None
    path = os.path.join(folder, "serve_client.mjs")
    with open(path, "w") as f:
        f.write(JAVASCRIPT)
    try:
        env = dict(os.environ, URL=options.url, KEY=options.key)
        done = subprocess.run([node, path], env=env, capture_output=True, text=True, timeout=300)
    finally:
        os.remove(path)
    if done.returncode != 0 or done.stdout.strip() != "ok":
        raise SystemExit("openai for JavaScript: %s%s" % (done.stdout, done.stderr))
    return "openai for JavaScript: ok"


def schemathesis(options):
    beside = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    tool = beside if os.path.exists(beside) else shutil.which("schemathesis")
    if tool is None:
        return None
    command = [tool, "run", options.url + "/openapi.json", "--checks",
               "not_a_server_error,response_schema_conformance,content_type_conformance",
               "--max-examples", str(options.examples), "--request-timeout", "300",
               "-H", "Authorization: Bearer " + options.key]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit("schemathesis:\n" + done.stdout[-8000:] + done.stderr[-2000:])
    return "schemathesis: ok"


def promtool(options):
    tool = options.promtool or shutil.which("promtool")
    if tool is None:
        return None
    request = urllib.request.Request(options.url + "/metrics",
                                     headers={"Authorization": "Bearer " + options.key})
    page = urllib.request.urlopen(request).read()
    done = subprocess.run([tool, "check", "metrics"], input=page, capture_output=True)
    # vLLM's names have a colon, and one histogram of its ends in _total: names are theirs.
    lint = [line for line in (done.stdout + done.stderr).decode().splitlines()
            if "should not contain ':'" not in line and "iteration_tokens_total" not in line]
    if done.returncode not in (0, 3) or lint:
        raise SystemExit("promtool: %d\n%s" % (done.returncode, "\n".join(lint)))
    return "promtool: ok"


def main():
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("url")
    parser.add_argument("--key", default="none")
    parser.add_argument("--examples", type=int, default=30)
    parser.add_argument("--node-modules")
    parser.add_argument("--promtool")
    options = parser.parse_args()
    options.url = options.url.rstrip("/")
    results = [("openai for Python", python_client(options)
                if importlib.util.find_spec("openai") else None),
               ("openai for JavaScript", javascript_client(options)),
               ("promtool", promtool(options)), ("schemathesis", schemathesis(options))]
    for name, result in results:
        print(result or "%s: not here" % name)
    health = urllib.request.urlopen(options.url + "/health").status
    if health != 200:
        raise SystemExit("the server is not well: %d" % health)
    sys.exit(0 if any(result for _, result in results) else 77)


main()
