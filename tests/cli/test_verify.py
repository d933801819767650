#!/usr/bin/env python3
"""nibble verify from the outside."""

import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib

KEYS = {"name", "hashes", "n_ways", "n_tokens", "isas", "threads", "skipped", "mismatch", "seconds"}


class Verify(lib.Case):
    @classmethod
    def setUpClass(cls):
        cls.model = lib.TinyModel(n_ctx=512)

    def setUp(self):
        super().setUp()
        self.gguf = lib.write_gguf(self.path("m.gguf"), self.model, "q4_0", "q8_0")

    def verify(self, *args, model=None):
        lines = lib.json_lines(self.ok("verify", model or self.gguf, *args, "--json"))
        self.assertEqual(len(lines), 1)
        self.assertEqual(KEYS - set(lines[0]), set())
        self.assertIsNone(lines[0]["mismatch"])
        return lines[0]

    def hashes(self, *args, **more):
        return {(h["compute"], h["kv"]): h["logits_hash"]
                for h in self.verify(*args, **more)["hashes"]}

    def test_every_mode_and_cache_format(self):
        r = self.verify()
        kvs = {h["kv"] for h in r["hashes"]}
        self.assertTrue({"f16", "f32"} <= kvs, kvs)
        self.assertEqual({(h["compute"], h["kv"]) for h in r["hashes"]},
                         {(c, kv) for c in ("f", "i8", "i16") for kv in kvs})
        self.assertEqual((r["name"], r["n_tokens"], r["threads"]), ("m.gguf", 64, [1, 2, 3, 8]))
        # 64 tokens are all recent: these keep them in F16
        few = [h for h in r["hashes"] if h["kv"] not in ("int4_plain", "int2")]  # int2 is as int4
        self.assertEqual(len({h["logits_hash"] for h in few}), len(few))
        self.assertEqual(sum(h["n_ways"] for h in r["hashes"]), r["n_ways"])
        self.assertEqual({h["n_engine_ways"] for h in r["hashes"]}, {4})
        for h in r["hashes"]:
            self.assertRegex(h["logits_hash"], "^[0-9a-f]{16}$")
            # one to compare with, flush-to-zero in the caller, and at least one for each set
            self.assertGreaterEqual(h["n_ways"], 2 + len(r["isas"]))
        # What this machine has comes best first and ends with scalar code, which takes 16 tokens.
        self.assertEqual(r["isas"][-1], {"isa": "scalar", "n_tokens": 16})
        named = {i["isa"] for i in r["isas"]} | set(r["skipped"])
        self.assertEqual(named, {"scalar", "avx2", "avx512", "amx", "neon"})
        self.assertEqual(len(r["isas"]) + len(r["skipped"]), 5)

    def test_the_matrix_can_be_narrowed(self):
        whole = self.hashes("-n", "20")
        for args, want in ((("--compute", "i8"), {k for k in whole if k[0] == "i8"}),
                           (("--kv", "f32"), {k for k in whole if k[1] == "f32"}),
                           (("--compute", "f", "--kv", "f16"), {("f", "f16")}),
                           (("--compute", "auto", "--kv", "f16"), {("i8", "f16")}),
                           (("--threads", "2", "--kv", "f32"), {k for k in whole if k[1] == "f32"}),
                           (("--isa", "scalar", "--kv", "f16"), {k for k in whole if k[1] == "f16"}),
                           (("--isa", "auto", "--compute", "i16"),
                            {k for k in whole if k[0] == "i16"})):
            part = self.hashes("-n", "20", *args)
            self.assertEqual(part, {k: whole[k] for k in want}, args)
        r = self.verify("-n", "20", "--threads", "3", "--isa", "scalar", "--compute", "i8")
        self.assertEqual((r["threads"], r["skipped"]), ([3], []))
        self.assertEqual(r["isas"], [{"isa": "scalar", "n_tokens": 20}])

    def test_every_combination(self):
        r = self.verify("-n", "9", "--full", "--compute", "i8", "--kv", "f16", "--threads", "2")
        self.assertEqual(r["n_ways"], 2 + 20 * len(r["isas"]))
        self.assertEqual(self.hashes("-n", "9", "--compute", "i8", "--kv", "f16"),
                         {("i8", "f16"): r["hashes"][0]["logits_hash"]})

    def test_packed_caches_past_their_recent_tokens(self):
        hashes = set()
        for kv in ("f16", "int4", "int4_plain", "int2"):
            r = self.verify("-n", "240", "--compute", "i8", "--threads", "2", "--isa", "auto",
                            "--kv", kv)
            hashes |= {h["logits_hash"] for h in r["hashes"]}
        self.assertEqual(len(hashes), 4)

    def test_two_splits_of_attention(self):
        r = self.verify("-n", "300", "--compute", "i8", "--threads", "2", "--isa", "auto")
        self.assertEqual(r["n_tokens"], 300)

    def test_the_hash_is_that_of_eval(self):
        """eval --protocol llama scores positions 256..510 of a window: verify cannot print that
        hash. But what run says after a prompt of one token is the hash of position 0."""
        text = self.write("t.txt", "a")
        run = json.loads(self.ok("run", self.gguf, "a", "--max-tokens", "1", "--greedy", "--json"))
        verified = self.verify("-n", "1", "--text", text, "--compute", "auto", "--kv", "f16")
        self.assertEqual(run["prompt_tokens"], 1)
        self.assertEqual(verified["hashes"][0]["logits_hash"], run["logits_hash"])

    def test_tokens_of_a_text(self):
        text = self.write("t.txt", "the cat sat on the mat and ate the rat; " * 9)
        other = self.write("u.txt", "the dog sat on the mat and ate the rat; " * 9)
        narrow = ("-n", "30", "--compute", "i8", "--kv", "f16")
        hashes = [self.hashes(*narrow, *args) for args in
                  ((), ("--text", text), ("--text", other), ("--text", text))]
        self.assertEqual(hashes[1], hashes[3])
        self.assertEqual(len({h["i8", "f16"] for h in hashes}), 3)
        line = self.fails(1, "verify", self.gguf, "-n", "400", "--text", self.write("s", "short"))
        self.assertRegex(line, "s: [0-9]+ tokens, and --tokens is 400")
        self.assertIn("none.txt", self.fails(1, "verify", self.gguf, "--text", self.path("none.txt")))

    def test_a_model_without_integers(self):
        folder = lib.write_hf(self.path("hf"), self.model, "bf16")
        r = self.verify("-n", "10", model=folder)
        self.assertEqual({h["compute"] for h in r["hashes"]}, {"f"})
        self.assertTrue({"i8", "i16"} <= set(r["skipped"]))
        self.assertIn("i8 i16 (no weight has an integer form)",
                      self.ok("verify", folder, "-n", "10", "--kv", "f16"))

    def test_the_same_weights_in_two_containers(self):
        folder = lib.write_hf(self.path("hf"), self.model, "f32")
        gguf = lib.write_gguf(self.path("f32.gguf"), self.model, "f32")
        lines = lib.json_lines(self.ok("verify", gguf, "--against", folder, "--json"))
        self.assertEqual((lines[0]["mismatch"], lines[0]["against"]), (None, folder))
        self.assertEqual({h["logits_hash"] for h in lines[0]["hashes"]},
                         set(self.hashes(model=gguf).values()))

    def test_other_weights_are_found_and_named(self):
        for name, layer, op in (("model.layers.1.mlp.gate_proj.weight", 1, "gate"),
                                ("model.layers.0.self_attn.v_proj.weight", 0, "value"),
                                ("model.layers.1.input_layernorm.weight", 1, "attention norm"),
                                ("model.norm.weight", 2, "final norm"),
                                ("model.embed_tokens.weight", 0, "attention norm")):
            other = lib.TinyModel(n_ctx=512)
            shape, values = other.tensors[name]
            other.tensors[name] = (shape, values[:-1] + [values[-1] + 0.5])
            a = lib.write_gguf(self.path("a.gguf"), self.model, "f16")
            b = lib.write_gguf(self.path("b.gguf"), other, "f16")
            # the last token of the vocabulary, for the embedding's last row
            text = self.write("t.txt", "et" * 3 + "x" * 40)
            args = ("verify", a, "--against", b, "--json", "-n", "20", "--text", text)
            line = self.fails(1, *args)
            self.assertIn("a.gguf: mode f, KV f16: layer %d, %s, token 0 differs from that of %s" %
                          (layer, op, b), line)
            found = lib.json_lines(lib.nibble(*args).out)[0]["mismatch"]
            self.assertEqual((found["layer"], found["op"], found["token"]), (layer, op, 0))
            self.assertEqual((found["compute"], found["kv"]), ("f", "f16"))
        deep = lib.write_gguf(self.path("deep.gguf"), lib.TinyModel(n_layers=3), "f16")
        self.assertIn("the other has 3", self.fails(1, "verify", a, "--against", deep))

    def test_people_get_words(self):
        out = self.ok("verify", self.gguf, "-n", "20")
        for words in ("logits hash", "in one piece, cuts of 64, 7 and 1, decoded",
                      "1, 2, 3 and 8 threads\nevery pair of them with KV f16, each of them with",
                      "; scalar code one way a row", "scalar (20 tokens)", "skipped: "):
            self.assertIn(words, out)
        out = self.ok("verify", self.gguf, "-n", "2", "--full", "--threads", "1", "--kv", "f32")
        self.assertIn(" 32 sequences; 1 thread\nevery combination\n", out)
        self.assertEqual(lib.nibble("verify", self.gguf, "-n", "3", "-q").err, "")

    def test_what_is_refused(self):
        for args in (("-n", "0"), ("--threads", "257"), ("--kv", "f64"), ("--isa", "sse"),
                     ("--compute", "i4"), (self.gguf,), ("--against", self.gguf, "--full")):
            self.fails(2, "verify", self.gguf, *args)
        self.fails(2, "verify")
        self.assertIn("none.gguf", self.fails(1, "verify", self.path("none.gguf")))
        self.assertIn("none.gguf",
                      self.fails(1, "verify", self.gguf, "--against", self.path("none.gguf")))
        with open(self.gguf, "rb") as f:
            cut = self.write("cut.gguf", f.read()[:-40])
        self.assertIn("cut.gguf", self.fails(1, "verify", cut))
        missing = set(("avx2", "avx512", "amx", "neon")) & set(self.verify("-n", "1")["skipped"])
        for isa in missing:
            self.assertIn(isa, self.fails(2, "verify", self.gguf, "--isa", isa))

    def test_activations_that_are_not_finite(self):
        broken = lib.TinyModel()
        shape, values = broken.tensors["model.layers.1.input_layernorm.weight"]
        broken.tensors["model.layers.1.input_layernorm.weight"] = (shape, [3e38] * len(values))
        gguf = lib.write_gguf(self.path("inf.gguf"), broken, "q4_0")
        line = self.fails(1, "verify", gguf, "--compute", "i8", "-n", "5")
        self.assertIn("inf.gguf: the activations of layer 1 hold Inf or NaN", line)
        # In floats, a model of NaN is the same in every way.
        self.assertIsNone(self.verify("--compute", "f", "-n", "5", model=gguf)["mismatch"])

    def test_ctrl_c_ends_it(self):
        child = subprocess.Popen([lib.BINARY, "verify", self.gguf, "--full", "-n", "500"], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
        self.assertEqual((child.returncode, out), (5, ""), err)
        self.assertEqual(err, "nibble: interrupted\n")


if __name__ == "__main__":
    lib.main()
