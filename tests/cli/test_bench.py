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
        "decode_range", "batch_decode_tok_s", "batch_decode_range", "batch_prompt_tokens",
        "batch_gen_tokens", "scheme", "decode_read_gb_s", "prefill_peak_share", "decode_read_share",
        "batch_peak_share", "batch_read_share", "limits"}
LIMITS = {"threads", "read_gb_s", "read_1_thread_gb_s", "int8_gop_s", "int8_unit", "fma_gflop_s",
          "fma_unit", "l2_read_gb_s", "l3_read_gb_s"}
NO_BATCH = ("--prompt", "8", "--gen", "4", "--repeat", "2", "--batch", "none")
SMALL = ("--prompt", "8", "--gen", "4", "--repeat", "2", "--batch", "1,3", "--batch-prompt", "5",
         "--batch-gen", "2")
TINY = "2x64,2/1x32,96,300,tied"  # a shape


class Bench(lib.Case):
    @classmethod
    def setUpClass(cls):
        cls.model = lib.TinyModel()

    def setUp(self):
        super().setUp()
        self.gguf = lib.write_gguf(self.path("m.gguf"), self.model, "q4_0", "q8_0")

    def bench(self, *args):
        return self.one(self.gguf, *args)

    def one(self, *args):
        lines = self.lines(*args)
        self.assertEqual(len(lines), 1)
        return lines[0]

    def lines(self, *args):
        lines = lib.json_lines(self.ok("bench", *args, "--json"))
        for line in lines:
            self.assertEqual(set(line), KEYS)
            self.assertEqual(set(line["limits"]), LIMITS)
        return lines

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

    def test_limits_and_shares(self):
        r = self.bench(*SMALL, "--threads", "2")
        limits = r["limits"]
        self.assertEqual(limits["threads"], 2)
        for key in ("read_gb_s", "read_1_thread_gb_s", "int8_gop_s", "fma_gflop_s"):
            self.assertGreater(limits[key], 0)
        for key in ("prefill_peak_share", "decode_read_share", "decode_read_gb_s"):
            self.assertGreater(r[key], 0)
        self.assertAlmostEqual(r["decode_read_share"], r["decode_read_gb_s"] / limits["read_gb_s"],
                               places=12)
        # What a token reads: the blocks and the tied head, in the file's bytes, and the cache.
        m = self.model
        weights = sum(len(raw) for name, dims, _, raw in lib.gguf_tensors(m, "q4_0", "q8_0")
                      if len(dims) == 2)
        cache = 2 * m.n_layers * m.n_kv_heads * m.head_dim * 2 * (r["depth"] + r["gen_tokens"] / 2)
        rows = lambda n: -(-n // 16) * 16  # panels hold 16 rows; this model's matrices fill them
        self.assertTrue(all(dims[1] == rows(dims[1]) for _, dims, _, _ in
                            lib.gguf_tensors(m, "q4_0", "q8_0") if len(dims) == 2))
        self.assertAlmostEqual(r["decode_read_gb_s"] * 1e9 / r["decode_tok_s"], weights + cache,
                               delta=1)
        # The least time of a token of a batch, and so its share: all products at the peak.
        ops = 2 * sum(dims[0] * dims[1] for _, dims, _, _ in lib.gguf_tensors(m, "q4_0", "q8_0")
                      if len(dims) == 2)
        for batch in ("1", "3"):
            self.assertAlmostEqual(r["batch_peak_share"][batch] / r["batch_decode_tok_s"][batch],
                                   ops / (1e9 * limits["int8_gop_s"]), places=12)

    def test_limits_alone(self):
        for args in ((), ("--threads", "1"), ("--isa", "scalar")):
            (r,) = lib.json_lines(self.ok("bench", "--limits", "--json", *args))
            self.assertEqual(set(r), {"isa", "threads", "limits"})
            self.assertEqual(set(r["limits"]), LIMITS)
            self.assertEqual(r["limits"]["threads"], r["threads"])
        self.assertEqual((r["isa"], r["limits"]["int8_unit"]), ("scalar", "imul"))
        out = self.ok("bench", "--limits")
        for word in ("limits: ", "Gop/s int8 (", "Gflop/s (", "read "):
            self.assertIn(word, out)
        self.assertEqual(out.count("\n"), 1)

    def test_batches(self):
        r = self.bench("-p", "4", "-n", "2", "-r", "3", "--batch", "7,1,33", "--batch-prompt", "31",
                       "--batch-gen", "3")
        self.assertEqual((r["batch_prompt_tokens"], r["batch_gen_tokens"]), (31, 3))
        self.assertEqual(list(r["batch_decode_tok_s"]), ["7", "1", "33"])
        for batch, speed in r["batch_decode_tok_s"].items():
            low, high = r["batch_decode_range"][batch]
            self.assertTrue(0 < low <= speed <= high, r)
        for args in (("--batch", "none"), ("--batch", "512", "--batch-gen", "1"),
                     ("--batch", "2", "--kv", "f32", "--depth", "40")):
            self.bench("-p", "4", "-n", "2", "-r", "1", *args)
        self.assertEqual(self.bench(*NO_BATCH)["batch_decode_tok_s"], {})

    def test_depths_are_lines(self):
        lines = self.lines(self.gguf, *SMALL, "--depth", "40,0,513")
        self.assertEqual([r["depth"] for r in lines], [40, 0, 513])
        self.assertEqual(len({json.dumps(r["limits"]) for r in lines}), 1)

    def test_shapes(self):
        for scheme, mode in (("Q4_0", "i8"), ("q8_0", "i8"), ("W4A16:g32", "i16"), ("W8A16", "i16"),
                             ("W8A8", "i8"), ("W4A8:g32,asym", "i8")):
            r = self.one("--shape", TINY, *SMALL, "--scheme", scheme)
            self.assertEqual((r["name"], r["compute"]), (TINY, mode))
            self.assertEqual(r["scheme"].lower(), scheme.lower())
            self.assertTrue(4 < r["bpw"] < 11, r)
        for mode in ("f", "i8", "i16"):
            r = self.one("--shape", TINY, *SMALL, "--scheme", "W4A16", "--compute", mode)
            self.assertEqual((r["scheme"], r["compute"]), ("W4A16", mode))
        self.assertIsNone(self.bench(*SMALL)["scheme"])
        r = self.one("--shape", TINY, *NO_BATCH, "--name", "mine")
        self.assertEqual((r["name"], r["scheme"]), ("mine", "Q4_0"))
        # 300 x 64 in q8_0; two layers of 64 x (64 + 32 + 32 + 64 + 3 * 96) in q4_0; 5 norms in f32
        self.assertEqual(r["bytes"], 300 * 68 + 2 * 64 * 480 * 18 // 32 + 5 * 64 * 4)
        self.assertIn(TINY + ": random Q4_0, ", self.ok("bench", "--shape", TINY, *SMALL))

    def test_what_no_shape_is(self):
        for args in (("--shape", "llama"), ("--shape", TINY, self.gguf), ("--shape", TINY, "--scheme", "x"),
                     ("--scheme", "Q4_0"), (self.gguf, "--scheme", "Q4_0"), ("--shape", "")):
            self.fails(2, "bench", *args)
        self.assertIn("groups of 128", self.fails(1, "bench", "--shape", TINY, "--scheme", "W4A16:g128"))
        self.assertIn("key-value heads", self.fails(1, "bench", "--shape", "1x64,3/2x32,64,64"))
        line = self.fails(4, "bench", "--shape", "4096x65536,64/64x128,65536,128000")
        self.assertRegex(line, "weights take .* TB and a context of 512 tokens .*, and .* are free")
        line = self.fails(4, "bench", "--shape", "8x64,8/8x512,64,64", "--depth", "16000000")
        self.assertRegex(line, "weights take .* MB and a context of 16000512 tokens .* TB, and ")

    def test_a_batch_that_does_not_fit_is_left_out(self):
        # 512 sequences of 200,004 positions with 2 x 8 x 64 cells of 2 bytes: 210 GB
        done = lib.nibble("bench", "--shape", "8x64,2/2x32,64,64", "-r", "1", "-p", "4", "-n", "1",
                          "--batch", "512", "--batch-prompt", "4", "--batch-gen", "200000", "--json")
        self.assertEqual(done.code, 0, done.err)
        (r,) = lib.json_lines(done.out)
        for key in ("tok_s", "range"):
            self.assertIsNone(r["batch_decode_" + key]["512"])
        self.assertIsNone(r["batch_peak_share"]["512"])
        self.assertRegex(done.err, "warning: no batch of 512 at depth 0: its caches need .* GB")

    def test_every_shape_of_run(self):
        for args in (("--prompt", "1", "--gen", "1", "--repeat", "1"),
                     ("--prompt", "3", "--gen", "20", "--repeat", "1"),
                     ("--prompt", "600", "--gen", "1", "--repeat", "1"),
                     ("--prompt", "5", "--gen", "2", "--repeat", "1", "--depth", "530")):
            r = self.bench(*args, "--batch", "none", "--name", "a name")
            self.assertEqual(r["name"], "a name")
            self.assertGreater(r["prefill_tok_s"], 0)
        for mode, isa in (("f", "scalar"), ("i8", "avx2"), ("i16", "auto")):
            self.assertEqual(self.bench(*SMALL, "--compute", mode, "--isa", isa)["compute"], mode)

    def test_people_get_words(self):
        out = self.ok("bench", self.gguf, *SMALL)
        for word in ("m.gguf: ", "bits per weight; mode i8", "prefill of 8 ", "decode of 4 ",
                     "decode of 2 in 1 sequence ", "decode of 2 in 3 sequences ", "loaded in ",
                     " of memory at the peak", "limits: "):
            self.assertIn(word, out)

    def test_what_is_refused(self):
        for args in (("--prompt", "0"), ("--gen", "0"), ("--gen", "-1"), ("--repeat", "0"),
                     ("--repeat", "1001"), ("--depth", "-1"), ("--prompt", "x"), ("--depth", ""),
                     ("--depth", "0,"), ("--depth", ",0"), ("--depth", "0,,1"), ("--depth", "0 1"),
                     ("--depth", "16777217"), ("--depth", "99999999999999999999"), ("--batch", "0"),
                     ("--batch", "513"), ("--batch", "1,1"), ("--batch", "x"), ("--batch", "None"),
                     ("--batch", ",".join(map(str, range(1, 18)))), ("--batch-gen", "0"),
                     ("--batch-prompt", "0"), ("--threads", "257"),
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
        for args in (("--prompt", "200000", "--gen", "1"), ("--prompt", "1", "--gen", "200000"),
                     ("--prompt", "1", "--gen", "1", "--batch", "2", "--batch-prompt", "200000"),
                     ("--prompt", "1", "--gen", "1", "--batch", "2", "--batch-gen", "200000")):
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


# What stands in the place of nibble: speeds that tell by which flags they came about.
FAKE_NIBBLE = r"""#!/bin/sh
echo "$@" >>"$0.calls"
case "$*" in *llama2-7b*) echo "nibble: no memory" >&2; exit 4 ;; esac
line() {
    printf '{"prefill_tok_s": %s, "decode_tok_s": 250.5, "depth": %s, "isa": "avx512", ' "$1" "$2"
    printf '"prefill_peak_share": 0.5, "decode_read_share": 0.905, "batch_decode_tok_s": %s, ' "$3"
    printf '"batch_peak_share": {"16": 0.25}, "limits": {"int8_gop_s": 900.0, "int8_unit": "vpdpbusd", '
    printf '"fma_gflop_s": 200.0, "read_gb_s": 30.0}}\n'
}
case "$*" in
*4096*) line 1600 0 '{}' && line 900 4096 '{}' ;;
*avx2*) line 99.94 0 '{"16": null}' ;;
*) line 3000 0 '{"16": 1500.4}' ;;
esac
"""
FAKE_PEER = """#!/bin/sh
echo '[{"n_prompt": 512, "n_gen": 0, "avg_ts": 1500.5},'
echo '{"n_prompt": 0, "n_gen": 64, "avg_ts": 190.25}]'
"""
FAKE_BATCHED = """#!/bin/sh
echo "|    PP |  TG |  B |  N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s |  T s |  S t/s |"
echo "|-------|-----|----|-------|--------|----------|--------|----------|------|--------|"
echo "|   128 |  32 | 16 |  2560 |  1.000 |   813.25 |  1.000 |   383.00 | 2.00 | 999.00 |"
"""
TABLE = """\
| tok/s | prefill 512 (of the multiply peak) | decode 1 (of the read bandwidth) | \
decode 16 sequences, total (of the multiply peak) | peer: prefill | decode 1 | decode 16 |
|---|---|---|---|---|---|---|
| SmolLM2-135M, 4-bit | 3000 (50 %) | 250 (90 %) | 1500 (25 %) | 1500 | 190 | 383 |
| Llama-3.2-1B shape, 4-bit g32 | 3000 (50 %) | 250 (90 %) | 1500 (25 %) | - | - | - |
| Llama-3.2-1B shape, 4-bit g128 | 3000 (50 %) | 250 (90 %) | 1500 (25 %) | - | - | - |
| Llama-3.2-1B shape, 8-bit | 3000 (50 %) | 250 (90 %) | 1500 (25 %) | - | - | - |
| Llama-2-7B shape, 4-bit g128 | - | - | - | - | - | - |
| SmolLM2-135M, 4-bit, INT8 cache: prefill of 4096, decode behind it | 1600 (50 %) | 250 (90 %) | - | 813 | 383 | - |
| SmolLM2-135M, 4-bit, AVX2 | 99.9 (50 %) | 250 (90 %) | - | - | - | - |
| Llama-3.2-1B shape, 4-bit g32, AVX2 | 99.9 (50 %) | 250 (90 %) | - | - | - | - |

3 threads, avx512, medians of 2 rounds. This machine, in the same runs: 900 int8 Gop/s (vpdpbusd), \
200 Gflop/s, read 30.0 GB/s.
"""


class Script(lib.Case):
    """scripts/bench.sh, with programs in the place of nibble and its peers."""

    def script(self, **env):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts/bench.sh")
        return subprocess.run(["sh", script, self.path("")], text=True, capture_output=True,
                              env=lib.environment(THREADS="3", ROUNDS="2", **env))

    def program(self, name, text):
        path = self.write(name, text)
        os.chmod(path, 0o755)
        return path

    def test_the_table(self):
        self.program("nibble", FAKE_NIBBLE)
        done = self.script(PEER_BENCH=self.program("peer", FAKE_PEER), PEER_135M="small.gguf",
                           PEER_BATCHED=self.program("batched", FAKE_BATCHED))
        self.assertEqual(done.stdout, TABLE)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.path("nibble.calls")) as f:
            calls = f.read().splitlines()
        self.assertEqual(len(calls), 16)
        self.assertEqual(calls[:8], calls[8:])  # rows take turns
        self.assertEqual(calls[2], "bench --shape llama3.2-1b --scheme W4A16:g128 --compute i8 "
                                   "--batch 16 --threads 3 --repeat 3 --json --quiet")

    def test_without_peers_and_with_some_rows(self):
        self.program("nibble", FAKE_NIBBLE)
        done = self.script(ROWS="135M.*AVX2|8-bit")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([line.count("|") for line in done.stdout.splitlines()], [5, 5, 5, 5, 0, 0])

    def test_nothing_measured_is_a_failure(self):
        self.assertEqual(self.script().returncode, 1)
        self.program("nibble", FAKE_NIBBLE)
        self.assertEqual(self.script(ROWS="7B").returncode, 1)
        done = self.script(ROWS="no such row")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no row's name matches", done.stderr)


def limit_memory():
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))


if __name__ == "__main__":
    lib.main()
