"""Models that mean harm, given to every verb: one line that names the file, and nothing left behind.

What is wrong with a model must not depend on the verb that happens to read it, so each model here
goes through all of them."""

import json
import os
import resource
import struct
import subprocess

import lib

MODEL = lib.TinyModel(n_layers=1)
TOKENS = len(MODEL.tokens)


class Hostile(lib.Case):
    def setUp(self):
        super().setUp()
        self.text = self.write("text.txt", "the cat and the dog sat on the mat. " * 60)

    def verbs(self, model, out):
        """Every verb that opens a model; those with an output write below `out`."""
        return {
            "inspect": ["inspect", model],
            "tokenize": ["tokenize", model, "--text", "the cat"],
            "run": ["run", model, "the", "-n", "2", "--threads", "1"],
            "run --chat": ["run", model, "the", "--chat", "-n", "2", "--threads", "1"],
            "chat": ["chat", model, "-m", "the", "-n", "2", "--threads", "1"],
            "eval": ["eval", model, "--text", self.text, "--windows", "1", "--threads", "1"],
            "bench": ["bench", model, "-p", "4", "-n", "2", "-r", "1", "--threads", "1"],
            "quantize to hf": ["quantize", model, "-o", out + "/q", "--scheme", "W8A16"],
            "quantize to gguf": ["quantize", model, "-o", out + "/q.gguf", "--scheme", "Q8_0"],
            "convert to hf": ["convert", model, "-o", out + "/c"],
            "convert to gguf": ["convert", model, "-o", out + "/c.gguf"],
        }

    def refused(self, model, verbs, part="", code=1):
        """These verbs print one line on standard error, no note before it, and write nothing."""
        out = self.path("out")
        os.makedirs(out, exist_ok=True)
        for verb in verbs:
            with self.subTest(model=model, verb=verb, part=part):
                done = lib.nibble(*self.verbs(model, out)[verb])
                self.assertEqual(done.code, code, done.err)
                line, = [x for x in done.err.splitlines() if not x.startswith("nibble: warning: ")]
                self.assertRegex(line, r"^nibble: [ -~]{1,990}$")
                self.assertIn(os.path.basename(model), line)
                self.assertIn(part, line)
                self.assertEqual(os.listdir(out), [])

    def gguf(self, changes, tensors=None, without=()):
        keys = {**lib.gguf_keys(MODEL), **changes}
        for key in without:
            del keys[key]
        raw = lib.gguf_bytes(keys, lib.gguf_tensors(MODEL, "q8_0") if tensors is None else tensors)
        return self.write("bad.gguf", raw)

    def folder_with(self, changes):
        """A folder with some files replaced; a function gets the parsed file and changes it."""
        for name, content in {**lib.hf_files(MODEL, "bf16"), **changes}.items():
            if callable(content):
                parsed = json.loads(lib.hf_files(MODEL, "bf16")[name])
                content(parsed)
                content = json.dumps(parsed)
            self.write("bad/" + name, content)
        return self.path("bad")

    ALL = ("inspect", "tokenize", "run", "run --chat", "chat", "eval", "bench", "quantize to hf",
           "quantize to gguf", "convert to hf", "convert to gguf")
    NOT_BENCH = tuple(v for v in ALL if v != "bench")
    NEED_CONFIG = tuple(v for v in ALL if v != "tokenize")
    CHATS = ("run --chat", "chat")

    # ---- what every verb says of the same model ----

    def test_a_broken_tokenizer_is_not_copied_into_a_gguf(self):
        """H14 to H17."""
        g = "tokenizer.ggml."
        for changes, part in (({g + "tokens": MODEL.tokens[:-1]}, "319 tokens for 320 rows"),
                              ({g + "tokens": [1, 2]}, "tokens"),
                              ({g + "token_type": [1] * 5}, "token_type has 5 entries"),
                              ({g + "scores": [1] * TOKENS}, "scores"),
                              ({g + "unknown_token_id": TOKENS}, "unknown_token_id"),
                              ({g + "padding_token_id": 2 ** 32 - 1}, "padding_token_id"),
                              ({g + "merges": ["ab"]}, "merge 0"),
                              ({g + "merges": ["zq qz"]}, "merge 0")):
            self.refused(self.gguf(changes), self.NOT_BENCH, part)
        self.refused(self.gguf({}, without=[g + "tokens"]), self.NOT_BENCH, "tokens' is missing")

    def test_a_broken_tokenizer_is_not_copied_into_a_folder(self):
        """H39 to H42."""
        def vocab(value):
            return lambda t: t["model"]["vocab"].update(zzz=value)

        def added(**what):
            return lambda t: t["added_tokens"].append(dict(t["added_tokens"][0], **what))

        deep = {"type": "Split", "pattern": {"Regex": "(" * 30000}, "behavior": "Isolated"}
        for change in (vocab(-1), vocab(5), vocab(2 ** 31 - 1), vocab("5"), vocab(1.5),
                       added(content=""), added(id=-1), added(id=10 ** 6, content="zz"),
                       lambda t: t["pre_tokenizer"].pop("type"),
                       lambda t: t.update(pre_tokenizer=deep),
                       lambda t: t["model"].update(merges=["ab"])):
            self.refused(self.folder_with({"tokenizer.json": change}), self.NOT_BENCH,
                         "tokenizer.json")
        self.refused(self.folder_with({"tokenizer.json": b"[" * 100000}), self.NOT_BENCH)

    def test_a_tokenizer_of_an_unknown_kind_is_carried_along(self):
        """Nibble cannot run it, others can; within the same container nothing is lost."""
        path = self.gguf({"tokenizer.ggml.model": "llama"})
        self.ok("inspect", path)
        done = lib.nibble("convert", path, "-o", self.path("copy.gguf"))
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("warning: %s: tokenizer model 'llama' is not supported" % path, done.err)
        self.refused(path, ("tokenize", "run", "convert to hf", "quantize to hf"), "'llama'")

    def test_names_and_shapes_are_checked_by_all(self):
        """H23, H36: also those that quantizing only copies."""
        bias = ("blk.0.attn_q.bias", (32,), 0, bytes(128))
        self.refused(self.gguf({}, lib.gguf_tensors(MODEL, "q8_0") + [bias]), self.NEED_CONFIG)
        for change in (lambda c: c.update(attention_bias=True), lambda c: c.update(mlp_bias=True),
                       lambda c: c.update(num_hidden_layers=2)):
            self.refused(self.folder_with({"config.json": change}), self.NEED_CONFIG)

    # ---- conversations ----

    def test_what_a_chat_cannot_use_is_the_only_line(self):
        for template in (5, "{% if %}", "{{ raise_exception('no') }}",
                         "{% for m in messages %}{{ m.no.such }}{% endfor %}"):
            self.refused(self.gguf({"tokenizer.chat_template": template}), self.CHATS)
        self.refused(self.gguf({}, without=["tokenizer.chat_template"]), self.CHATS, "no chat")

    def test_endless_templates_stop_at_a_limit(self):
        """H44: they load, and other verbs work."""
        loop = "{% for i in range(9999) %}"
        for template in (loop * 5 + "x" + "{% endfor %}" * 5, "(" * 50000,
                         "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
                         "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "x" * (5 << 20)):
            path = self.gguf({"tokenizer.chat_template": template})
            self.ok("inspect", path)
            if template.startswith("((("):
                continue  # plain text
            for verb in self.CHATS:
                done = lib.nibble(*self.verbs(path, self.folder)[verb], timeout=30)
                self.assertIn(done.code, (1, 4), template[:40])
                self.assertRegex(done.err, r"^nibble: [^\n]*bad\.gguf: [^\n]*\n$")

    def test_links_and_pipes_inside_a_folder(self):
        """H47, one level down."""
        for name, verbs in (("config.json", self.ALL), ("model.safetensors", self.NEED_CONFIG),
                            ("tokenizer.json", ("tokenize", "run", "chat", "eval")),
                            ("chat_template.jinja", self.CHATS)):
            for make in (os.mkfifo, os.mkdir, lambda p: os.symlink(os.path.basename(p), p),
                         lambda p: os.symlink("/dev/zero", p)):
                folder = self.folder_with({})
                path = os.path.join(folder, name)
                if os.path.exists(path):
                    os.unlink(path)
                make(path)
                self.refused(folder, verbs, name)
                os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)

    # ---- weights ----

    def test_nan_weights_name_the_file_and_nothing_else(self):
        """H45."""
        for fmt, at, raw in (("f32", 4 * 70, struct.pack("<f", float("nan"))),
                             ("f16", 2 * 70, b"\0\x7c"), ("bf16", 2 * 70, b"\x80\xff"),
                             ("q4_0", 18 * 2, b"\0\x7e"), ("q4_1", 20 * 2 + 2, b"\0\x7e"),
                             ("q8_0", 34 * 2, b"\0\x7c")):
            tensors = lib.gguf_tensors(MODEL, fmt)
            for i, (name, dims, kind, whole) in enumerate(tensors):
                if name == "blk.0.ffn_up.weight":
                    tensors[i] = (name, dims, kind, whole[:at] + raw + whole[at + len(raw):])
            path = self.gguf({}, tensors)
            self.refused(path, ("run", "run --chat", "chat", "eval"))
            self.refused(path, ("quantize to hf", "quantize to gguf", "convert to hf",
                                "convert to gguf"), "up_proj.weight' holds")

    # ---- limits of the process ----

    def test_a_file_size_limit_is_an_error_not_a_signal(self):
        """H56 by `ulimit -f`, whose signal would leave the temporary behind."""
        path = lib.write_gguf(self.path("m.gguf"), MODEL, "f32")
        os.makedirs(self.path("out"))

        def limit(size):
            return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        for size in (0, 100, 4096, 20000):
            for args in (["quantize", path, "-o", self.path("out", "q"), "-s", "W8A16"],
                         ["quantize", path, "-o", self.path("out", "q.gguf"), "-s", "Q8_0"],
                         ["convert", path, "-o", self.path("out", "c")]):
                self.fails(3, *args, preexec_fn=limit(size))
                self.assertEqual(os.listdir(self.path("out")), [])
        with open(self.path("listing"), "wb") as f:
            done = subprocess.run([lib.BINARY, "inspect", path], stdout=f, stderr=subprocess.PIPE,
                                  env=lib.environment(), preexec_fn=limit(10))
        self.assertEqual((done.returncode, done.stderr),
                         (3, b"nibble: standard output: File too large\n"))

    def test_too_little_memory_names_the_model_and_the_limit(self):
        """H59."""
        path = lib.write_gguf(self.path("m.gguf"), MODEL, "f32")
        allowed = 36 << 20

        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))

        started = lib.nibble("--version", preexec_fn=limit)
        if started.code != 0:
            self.skipTest("this build does not even start in %d bytes" % allowed)
        # The cache of that context is 34 MB.
        for verb in (["run", path, "the"], ["chat", path, "-m", "the"]):
            done = lib.nibble(*verb, "--ctx", "262144", preexec_fn=limit)
            self.assertEqual(done.code, 4, done.err)
            self.assertRegex(done.err, r"^nibble: [^\n]*m\.gguf: out of memory: \d+ bytes were "
                                       r"needed; this process may use 37748736 bytes\n$")


if __name__ == "__main__":
    lib.main()
