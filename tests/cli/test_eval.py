#!/usr/bin/env python3
"""nibble eval from the outside: keys and values of its JSON, what it refuses and with which words."""

import json
import math
import os
import re
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib

TEXT = "".join("The %d cats of a %s town are in the %dth street.\n" % (i, "brown" * (i % 3), i * i)
               for i in range(60))

SCORE_KEYS = {"name", "protocol", "n_windows", "n_tokens", "bytes", "compute", "kv", "logits_hash",
              "perplexity", "perplexity_se", "base_perplexity", "kl_mean", "kl_mean_se", "kl_median",
              "kl_p99", "kl_max", "top1", "top1_se", "bpw", "seconds"}
BASE_KEYS = {"base_perplexity", "kl_mean", "kl_mean_se", "kl_median", "kl_p99", "kl_max", "top1",
             "top1_se"}
TASK_KEYS = {"name", "task", "n", "acc", "acc_se", "acc_norm", "acc_norm_se", "compute", "seconds"}

ITEMS = [
    {"query": "Question: Is the sun hot?", "choices": ["yes", "no", "only on Mondays"], "gold": 0},
    {"context_options": ["The cat and then Ann", "The cat and then Bob"], "continuation": "ran.",
     "gold": 1},
    {"query": "Question: 2 + 2?", "choices": ["4", "5"], "gold": 0},
]


def without_time(line):
    return {k: v for k, v in line.items() if k != "seconds"}


class Eval(lib.Case):
    @classmethod
    def setUpClass(cls):
        cls.model = lib.TinyModel(n_ctx=1024)
        cls.other = lib.TinyModel(seed=2, n_ctx=1024)

    def setUp(self):
        super().setUp()
        self.gguf = lib.write_gguf(self.path("m.gguf"), self.model, "q4_1", "q8_0")
        self.text = self.write("t.txt", TEXT)
        self.tasks = self.write("some.jsonl", "\n".join(map(json.dumps, ITEMS)) + "\n")

    def score(self, *args, **more):
        return lib.json_lines(self.ok("eval", *args, "--text", self.text, "--json", **more))

    # ---- text ----

    def test_one_line_with_stable_keys(self):
        (r,) = self.score(self.gguf)
        self.assertEqual(set(r), SCORE_KEYS)
        self.assertEqual({k for k, v in r.items() if v is None}, BASE_KEYS)
        self.assertEqual((r["name"], r["protocol"], r["compute"], r["kv"]),
                         ("m.gguf", "llama", "i8", "f16"))
        self.assertEqual(r["n_tokens"], 255 * r["n_windows"])
        self.assertGreaterEqual(r["n_windows"], 2)
        self.assertEqual(r["bytes"], os.path.getsize(self.gguf))
        self.assertRegex(r["logits_hash"], "^[0-9a-f]{16}$")
        self.assertGreater(r["perplexity"], 1)
        self.assertGreater(r["perplexity_se"], 0)
        self.assertGreater(r["seconds"], 0)

    def test_bits_per_weight_count_every_tensor(self):
        tensors = lib.gguf_tensors(self.model, "q4_1", "q8_0")
        tensors.append(("blk.0.unused.weight", (32, 3), 0, b"\0" * 384))
        self.write("more.gguf", lib.gguf_bytes(lib.gguf_keys(self.model), tensors))
        for path, extra in ((self.gguf, 0), (self.path("more.gguf"), 96)):
            size = sum(len(raw) for _, _, _, raw in tensors[:len(tensors) - (extra == 0)])
            count = self.model.n_parameters() + extra
            (r,) = self.score(path, "--windows", "1")
            self.assertAlmostEqual(r["bpw"], 8 * size / count, places=12)
            inspected = json.loads(self.ok("inspect", path, "--json").splitlines()[-1])
            if "bpw" in inspected:
                self.assertAlmostEqual(r["bpw"], inspected["bpw"], places=12)

    def test_a_model_against_itself_differs_by_exactly_nothing(self):
        for compute, same in (("f", True), ("i8", False)):
            (r,) = self.score(self.gguf, "--base", self.gguf, "--compute", compute, "--kv", "f32")
            self.assertEqual(set(r), SCORE_KEYS)
            self.assertNotIn(None, r.values())
            if same:
                self.assertEqual([r[k] for k in ("kl_mean", "kl_median", "kl_p99", "kl_max")], [0] * 4)
                self.assertEqual((r["top1"], r["top1_se"]), (1, 0))
                self.assertEqual(r["perplexity"], r["base_perplexity"])
            else:
                self.assertNotEqual(r["kl_mean"], 0)
                self.assertLessEqual(r["kl_median"], r["kl_p99"])
                self.assertLessEqual(r["kl_p99"], r["kl_max"])

    def test_a_folder_and_a_gguf_file_of_the_same_numbers_are_the_same(self):
        folder = lib.write_hf(self.path("folder"), self.model, "f32")
        gguf = lib.write_gguf(self.path("f32.gguf"), self.model, "f32")
        a, b = self.score(folder, gguf)
        self.assertEqual((a["name"], b["name"]), ("folder", "f32.gguf"))
        self.assertEqual(a["logits_hash"], b["logits_hash"])
        self.assertEqual((a["compute"], a["bpw"]), ("f", 32))

    def test_models_side_by_side_are_as_they_are_alone(self):
        second = lib.write_gguf(self.path("n.gguf"), self.other, "q8_0")
        base = lib.write_hf(self.path("base"), self.model, "bf16")
        both = self.score(self.gguf, second, "--base", base, "--name", "first one")
        self.assertEqual([r["name"] for r in both], ["first one", "n.gguf"])
        for path, r in zip((self.gguf, second), both):
            (alone,) = self.score(path, "--base", base, "--name", r["name"])
            self.assertEqual(without_time(alone), without_time(r))
        self.assertLess(both[0]["kl_mean"], both[1]["kl_mean"])

    def test_threads_and_instructions_do_not_change_a_digit(self):
        results = [without_time(self.score(self.gguf, "--windows", "1", "--threads", t, "--isa", isa,
                                           "--compute", mode)[0])
                   for mode in ("f", "i8", "i16")
                   for t, isa in (("1", "scalar"), ("2", "avx2"), ("3", "auto"))]
        for k in range(3):
            self.assertEqual(results[3 * k], results[3 * k + 1])
            self.assertEqual(results[3 * k], results[3 * k + 2])
        self.assertEqual(len({r["logits_hash"] for r in results}), 3)

    def test_windows_are_the_first_ones_and_at_most_all(self):
        (one,) = self.score(self.gguf, "--windows", "1")
        self.assertEqual((one["n_windows"], one["n_tokens"]), (1, 255))
        (all_,) = self.score(self.gguf)
        (more,) = self.score(self.gguf, "--windows", "1000000")
        self.assertEqual(without_time(all_), without_time(more))
        long = self.write("long.txt", TEXT * 2)
        self.text = long
        (paper,) = self.score(self.gguf, "--protocol", "paper", "--windows", "1")
        self.assertEqual((paper["protocol"], paper["n_tokens"]), ("paper", 2047))

    def test_text_from_standard_input(self):
        (a,) = self.score(self.gguf)
        done = lib.nibble("eval", self.gguf, "--text", "-", "--json", stdin=TEXT.encode())
        self.assertEqual(without_time(json.loads(done.out)), without_time(a))

    def test_any_bytes_are_a_text(self):
        for raw in (bytes(range(256)) * 8, b"\xff" * 2000, b"\n" * 5000):
            path = self.write("raw.txt", raw)
            (r,) = lib.json_lines(self.ok("eval", self.gguf, "--text", path, "--json"))
            self.assertTrue(math.isfinite(r["perplexity"]))

    def test_people_get_a_table(self):
        done = lib.nibble("eval", self.gguf, "--text", self.text, "--base", self.gguf)
        self.assertEqual(done.code, 0, done.err)
        self.assertRegex(done.out, r"protocol llama, \d+ windows, \d+ tokens scored; base perplexity")
        self.assertIn("KL mean", done.out)
        self.assertRegex(done.err, r"m\.gguf: logits hash [0-9a-f]{16}, \d+\.\d s\n")
        self.assertNotIn("\\x", done.err)
        self.assertEqual(lib.nibble("eval", self.gguf, "--text", self.text, "--quiet").err, "")

    # ---- tasks ----

    def test_tasks_have_their_keys(self):
        lines = lib.json_lines(self.ok("eval", self.gguf, "--tasks", self.tasks, "--json"))
        self.assertEqual(len(lines), 1)
        r = lines[0]
        self.assertEqual(set(r), TASK_KEYS)
        self.assertEqual((r["name"], r["task"], r["n"]), ("m.gguf", "some", 3))
        for key in ("acc", "acc_norm"):
            self.assertIn(round(3 * r[key], 9), (0, 1, 2, 3))
            self.assertAlmostEqual(r[key + "_se"], math.sqrt(r[key] * (1 - r[key]) / 2))
        out = self.ok("eval", self.gguf, "--tasks", self.tasks)
        self.assertRegex(out, r"^m\.gguf: some: acc \d\.\d{4} \+- \d\.\d{4}, acc_norm")

    def test_several_tasks_models_and_a_text(self):
        second = lib.write_gguf(self.path("n.gguf"), self.other, "q8_0")
        one = self.write("one", json.dumps(ITEMS[0]))
        lines = lib.json_lines(self.ok("eval", self.gguf, second, "--text", self.text, "--tasks",
                                       self.tasks, "--tasks", one, "--limit", "2", "--json"))
        self.assertEqual([(r["name"], r.get("task"), r.get("n")) for r in lines],
                         [("m.gguf", None, None), ("n.gguf", None, None), ("m.gguf", "some", 2),
                          ("n.gguf", "some", 2), ("m.gguf", "one", 1), ("n.gguf", "one", 1)])

    def test_broken_items_name_file_and_line(self):
        good = json.dumps(ITEMS[0])
        cases = [
            ("", "no items"),
            (good + "\n\n{", "line 3: not valid JSON"),
            (good + '\n{"query": "q", "gold": 0}', "line 2: key 'choices' is missing"),
            ('{"query": "q", "choices": ["a", "b"], "gold": 2}',
             "line 1: key 'gold' is 2, outside 0 to 1"),
            (b'\n{"query": "\xff", "choices": ["a", "b"], "gold": 0}', "line 2: not valid JSON"),
            (json.dumps({"query": "q" * 10_000_000, "choices": ["a", "b"], "gold": 0}),
             "line 1: a text of 10000000 bytes"),
            (good + "\n" + json.dumps({"query": "0" * 600, "choices": ["a", "b"], "gold": 0}),
             "line 2: an item of "),
        ]
        for content, reason in cases:
            path = self.write("bad.jsonl", content)
            line = self.fails(1, "eval", self.gguf, "--tasks", path)
            self.assertIn("%s: %s" % (path, reason), line)

    # ---- what is refused ----

    def test_wrong_usage(self):
        t = ["--text", self.text]
        for args, reason in (
                ([self.gguf], "eval: nothing to score: give --text FILE or --tasks FILE"),
                (t, "MODEL"),
                ([self.gguf, "--base", self.gguf, "--tasks", self.tasks], "--base needs --text FILE"),
                ([self.gguf, "--windows", "2", "--tasks", self.tasks], "--windows needs --text FILE"),
                ([self.gguf, "--protocol", "paper", "--tasks", self.tasks],
                 "--protocol needs --text FILE"),
                ([self.gguf, "--limit", "2"] + t, "--limit needs --tasks FILE"),
                ([self.gguf, "--name", "a", "--name", "b"] + t, "2 times --name for 1 models"),
                ([self.gguf, "--protocol", "wiki"] + t, "wiki"),
                ([self.gguf, "--windows", "0"] + t, "--windows"),
                ([self.gguf, "--windows", "-1"] + t, "--windows"),
                ([self.gguf, "--compute", "i4"] + t, "i4"),
                ([self.gguf, "--threads", "0"] + t, "--threads"),
                ([self.gguf, "--threads", "1000000000"] + t, "--threads"),
                ([self.gguf] * 65 + t, "at most 64 models"),
                ([self.gguf, "--text"], "--text"),
                ([self.gguf, "--texts", self.text], "--text")):
            self.assertIn(reason, self.fails(2, "eval", *args))

    def test_missing_files_are_found_before_any_model_is_loaded(self):
        none = self.path("none")
        for args in (["--text", none], ["--text", self.folder], ["--tasks", none]):
            self.assertIn(args[1], self.fails(1, "eval", self.path("no-model.gguf"), *args))
        self.assertIn("no-model.gguf", self.fails(1, "eval", self.path("no-model.gguf"), "--text",
                                                  self.text))
        self.assertIn("no-base", self.fails(1, "eval", self.gguf, "--base", self.path("no-base"),
                                            "--text", self.text))

    def test_a_text_without_a_whole_window(self):
        for content in ("", "short"):
            path = self.write("small.txt", content)
            self.assertRegex(self.fails(1, "eval", self.gguf, "--text", path),
                             r"%s: \d+ tokens; protocol 'llama' needs at least 512"
                             % re.escape(path))
        self.assertIn("needs at least 2048", self.fails(1, "eval", self.gguf, "--text", self.text,
                                                        "--protocol", "paper", "--windows", "1"))

    def test_models_of_other_vocabularies(self):
        other = lib.TinyModel(seed=2, n_ctx=1024)
        other.tokens[5], other.tokens[6] = other.tokens[6], other.tokens[5]
        swapped = lib.write_gguf(self.path("swapped.gguf"), other, "q8_0")
        for args in ([self.gguf, "--base", swapped], [self.gguf, swapped]):
            line = self.fails(1, "eval", *args, "--text", self.text)
            self.assertRegex(line, r"token 5 is '\\x0[23]' here and '\\x0[23]' in .*: the vocabularies differ")
            self.assertIn("swapped.gguf", line)
            self.assertNotIn(self.text, line)
        bigger = lib.TinyModel(seed=2, n_ctx=1024)
        keys = lib.gguf_keys(bigger)
        keys["tokenizer.ggml.tokens"] = bigger.tokens + ["extra"]
        keys["tokenizer.ggml.token_type"] = keys["tokenizer.ggml.token_type"] + [1]
        keys["llama.vocab_size"] = bigger.vocab_size + 1
        shape, values = bigger.tensors["model.embed_tokens.weight"]
        bigger.tensors["model.embed_tokens.weight"] = ((shape[0] + 1, shape[1]),
                                                       values + values[:shape[1]])
        self.write("bigger.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(bigger)))
        n = self.model.vocab_size
        line = self.fails(1, "eval", self.gguf, "--base", self.path("bigger.gguf"), "--text",
                          self.text)
        self.assertTrue(line.endswith("m.gguf: a vocabulary of %d tokens, and the base has %d"
                                      % (n, n + 1)), line)

    def test_a_model_with_a_nan_is_named(self):
        broken = lib.TinyModel(n_ctx=1024)
        broken.tensors["model.norm.weight"][1][7] = math.nan
        path = lib.write_gguf(self.path("nan.gguf"), broken, "q8_0")
        for compute in ("f", "i8", "i16"):
            self.assertRegex(self.fails(1, "eval", path, "--text", self.text, "--compute", compute),
                             r"nan\.gguf: .*Inf or NaN")
            self.assertRegex(self.fails(1, "eval", path, "--tasks", self.tasks, "--compute",
                                        compute), r"nan\.gguf: .*Inf or NaN")
        self.assertIn("nan.gguf: ", self.fails(1, "eval", self.gguf, "--base", path, "--text",
                                               self.text))

    def test_warnings(self):
        files = lib.hf_files(self.model)
        config = json.loads(files["config.json"])
        config["eos_token_id"] = 99999
        config["max_position_embeddings"] = 128
        for name, content in files.items():
            self.write("w/" + name, content)
        self.write("w/config.json", json.dumps(config))
        done = lib.nibble("eval", self.path("w"), "--text", self.text, "--quiet", "--json")
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(sorted(line.split(self.folder)[-1] for line in done.err.splitlines()), [
            "/w: key 'eos_token_id' is no id of the vocabulary of %d, and is ignored"
            % self.model.vocab_size,
            "/w: protocol 'llama' has windows of 512 tokens, and the model was trained for 128"])


if __name__ == "__main__":
    lib.main()
