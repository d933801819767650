#!/usr/bin/env python3
"""nibble bench from the outside. Nothing here depends on how fast the machine is."""

import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib

KEYS = {"name", "prefill_tok_s", "decode_tok_s", "load_s", "peak_rss_bytes", "bytes", "bpw",
        "compute", "kv", "threads", "isa", "prompt_tokens", "gen_tokens", "depth", "prefill_range",
        "decode_range"}
SMALL = ("--prompt", "8", "--gen", "4", "--repeat", "2")


class Bench(lib.Case):
    @classmethod
    def setUpClass(cls):
        cls.model = lib.TinyModel()

    def setUp(self):
        super().setUp()
        self.gguf = lib.write_gguf(self.path("m.gguf"), self.model, "q4_0", "q8_0")

    def bench(self, *args):
        lines = lib.json_lines(self.ok("bench", self.gguf, *args, "--json"))
        self.assertEqual(len(lines), 1)
        self.assertTrue(KEYS <= set(lines[0]), KEYS - set(lines[0]))
        return lines[0]

    def test_keys_and_values(self):
        r = self.bench(*SMALL, "--threads", "2", "--isa", "avx2", "--kv", "f32")
        self.assertEqual((r["name"], r["compute"], r["kv"], r["threads"]), ("m.gguf", "i8", "f32", 2))
        self.assertIn(r["isa"], ("avx2", "scalar"))
        self.assertEqual((r["prompt_tokens"], r["gen_tokens"], r["depth"]), (8, 4, 0))
        self.assertEqual(r["bytes"], os.path.getsize(self.gguf))
        size = sum(len(raw) for _, _, _, raw in lib.gguf_tensors(self.model, "q4_0", "q8_0"))
        self.assertAlmostEqual(r["bpw"], 8 * size / self.model.n_parameters(), places=12)
        for what in ("prefill", "decode"):
            low, high = r[what + "_range"]
            self.assertTrue(0 < low <= r[what + "_tok_s"] <= high, r)
        self.assertGreater(r["load_s"], 0)
        self.assertGreater(r["peak_rss_bytes"], 1 << 20)

    def test_every_shape_of_run(self):
        for args in (("--prompt", "1", "--gen", "1", "--repeat", "1"),
                     ("--prompt", "3", "--gen", "20", "--repeat", "1"),
                     ("--prompt", "600", "--gen", "1", "--repeat", "1"),
                     ("--prompt", "5", "--gen", "2", "--repeat", "1", "--depth", "530")):
            r = self.bench(*args, "--name", "a name")
            self.assertEqual(r["name"], "a name")
            self.assertGreater(r["prefill_tok_s"], 0)
        for mode, isa in (("f", "scalar"), ("i8", "avx2"), ("i16", "auto")):
            self.assertEqual(self.bench(*SMALL, "--compute", mode, "--isa", isa)["compute"], mode)

    def test_people_get_words(self):
        out = self.ok("bench", self.gguf, *SMALL)
        for word in ("m.gguf: ", "bits per weight; mode i8", "prefill ", "decode ", "load ", "memory "):
            self.assertIn(word, out)

    def test_what_is_refused(self):
        for args in (("--prompt", "0"), ("--gen", "0"), ("--gen", "-1"), ("--repeat", "0"),
                     ("--repeat", "1001"), ("--depth", "-1"), ("--prompt", "x"), ("--threads", "257"),
                     ("--kv", "f64"), ("--isa", "sse"), (self.gguf,), ("--unknown",)):
            self.fails(2, "bench", self.gguf, *args)
        self.fails(2, "bench")
        self.assertIn("none.gguf", self.fails(1, "bench", self.path("none.gguf")))
        with open(self.gguf, "rb") as f:
            cut = self.write("cut.gguf", f.read()[:-40])
        self.assertIn("cut.gguf", self.fails(1, "bench", cut))

    def test_a_cache_that_does_not_fit_is_one_clear_line(self):
        with open(lib.BINARY, "rb") as f:
            if b"__asan_init" in (program := f.read()) or b"__tsan_init" in program:
                self.skipTest("sanitizers reserve more address space than any limit")
        line = self.fails(4, "bench", self.gguf, "--depth", "2000000", "--repeat", "1",
                          preexec_fn=limit_memory)
        self.assertTrue("memory" in line or "fit" in line, line)

    def test_ctrl_c_ends_a_long_prompt_and_a_long_answer(self):
        for args in (("--prompt", "200000", "--gen", "1"), ("--prompt", "1", "--gen", "200000")):
            child = subprocess.Popen([lib.BINARY, "bench", self.gguf, *args], text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(2)  # loading and the check of the results take far less
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=120)
            self.assertEqual((child.returncode, out), (5, ""), err)
            self.assertEqual(err, "nibble: interrupted\n")

    def test_a_model_of_nan_is_not_timed(self):
        files = lib.hf_files(self.model)
        for name, content in files.items():
            if name.endswith(".safetensors"):  # the last weights become NaN in any float type
                content = content[:-64] + b"\xff" * 64
            self.write("nan/" + name, content)
        self.assertIn("not finite", self.fails(1, "bench", self.path("nan"), *SMALL))

    def test_warnings(self):
        files = lib.hf_files(self.model)
        config = json.loads(files["config.json"])
        config["bos_token_id"] = -5
        for name, content in files.items():
            self.write("w/" + name, content)
        self.write("w/config.json", json.dumps(config))
        done = lib.nibble("bench", self.path("w"), *SMALL, "--json")
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("nibble: warning: %s: key 'bos_token_id' is no id" % self.path("w"), done.err)


def limit_memory():
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))


if __name__ == "__main__":
    lib.main()
