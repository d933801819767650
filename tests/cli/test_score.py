"""What is said of a calibration text before it is used, of options that change nothing, and whether
predictions of size and memory come true."""

import json
import os

import lib

MODEL = lib.TinyModel(n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64)
WORDS = "the cat sat on the mat, and 12 dogs looked on; nobody knew why it is odd".split(" ")
TEXT = " ".join(WORDS[i * i % len(WORDS)] + "ab"[i % 2] for i in range(700))
SET = ["--calib-samples", "8", "--calib-len", "32"]


def sanitized():
    with open(lib.BINARY, "rb") as f:
        return b"__asan_init" in f.read()


class Score(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)

    def command(self, *args, scheme="W4A16:g32", out="out"):
        return ["quantize", self.model, "-o", self.path(out), "--scheme", scheme, "--threads", "1",
                "--force", *args]

    def calibrated(self, *args):
        return self.command("--calib", self.text, *SET, *args)

    def report(self, out="out"):
        with open(self.path(out, "nibble-report.json")) as f:
            return json.load(f)

    def test_the_set_is_scored_before_and_layers_after(self):
        done = lib.nibble(*self.calibrated("--method", "gptq"))
        self.assertEqual(done.code, 0, done.err)
        self.assertRegex(done.out, r"calibration text: 256 tokens in 8 sequences, 1 held out; "
                                   r"\d+\.\d % of runs repeat\n")
        self.assertRegex(done.out, r"it has \d+\.\d % of the vocabulary, which covers \d+\.\d % of")
        self.assertRegex(done.out, r"inputs of layers, held-out text against the rest: .* at "
                                   r"model\.layers\.[01]\.")
        self.assertIn("too few tokens: 224", done.err)
        report = self.report()
        score, coverage = report["calibration"]["score"], report["calibration"]["coverage"]
        self.assertTrue(0 < score["vocabulary_share"] < 1)
        self.assertTrue(0.5 < score["covered"] <= 1)
        self.assertIn("too few tokens", score["warnings"][0])
        self.assertTrue(0 < coverage["log_ratio_mean"] <= coverage["log_ratio_max"])
        linears = [o for o in report["calibration"]["layers"] if "name" in o]
        self.assertEqual(len(linears), 14)
        for o in linears:
            self.assertTrue(0 < o["rms_error"] < 1 and 0 < o["loss"] < 1, o)
        # The whole's error is made of theirs.
        power = [o["params"] * o["weight_rms"] ** 2 for o in linears]
        whole = (sum(p * o["rms_error"] ** 2 for p, o in zip(power, linears)) / sum(power)) ** 0.5
        self.assertAlmostEqual(report["rms_error"], whole, 9)
        self.assertEqual(report["max_error"], max(o["max_error"] for o in linears))
        (line,) = lib.json_lines(self.ok(*self.calibrated("--method", "gptq", "--json")))
        self.assertEqual(line["calibration"]["score"], score)
        self.assertEqual(line["calibration"]["coverage"], coverage)
        (line,) = lib.json_lines(self.ok(*self.calibrated("--method", "gptq", "--json",
                                                          "--dry-run")))
        self.assertEqual(line["calibration"]["score"], score)

    def test_a_text_that_no_method_learns_from_serves_to_check(self):
        plain = self.ok(*self.command("--json"))
        done = lib.nibble(*self.calibrated("--json"))
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("--calib: method rtn chooses codes without a text (rtn:search learns from "
                      "one); this one only serves to check the output", done.err)
        (was,), (line,) = lib.json_lines(plain), lib.json_lines(done.out)
        self.assertEqual(line["sha256"], was["sha256"])
        self.assertGreater(line["evaluation"]["kl_mean"], 0)
        self.assertFalse(line["calibration"]["learned_from"])
        self.assertEqual(self.report()["calibration"]["sha256"], line["calibration"]["sha256"])
        self.assertIn("Not" if "left_out" in line["evaluation"] else "KL mean",
                      self.ok("report", self.path("out"), "-o", "-"))
        done = lib.nibble(*self.calibrated("--check", "0"))
        self.assertIn("--calib: method rtn chooses codes without a text (rtn:search learns from "
                      "one); it has no effect", done.err)
        self.assertNotIn("calibration", self.report())

    def test_options_without_effect_are_named(self):
        for part, args in (
                ("--check has no effect", ["--check", "2"]),
                ("--calib-flow has no effect", ["--calib-flow", "original"])):
            done = lib.nibble(*self.command(*args))
            self.assertEqual(done.code, 0, done.err)
            self.assertIn(part, done.err)
        self.assertEqual(lib.nibble(*self.command()).err, "")
        self.assertIn("--tune goes on from the codes of another method", self.fails(
            2, *self.calibrated("--method", "autoround", "--tune", "autoround")))
        self.assertIn("--memory is 1 MB", self.fails(4, *self.command("--memory", "1M")))


class Predictions(lib.Case):
    """A model whose weights are not lost in what the program itself takes."""

    def test_size_and_memory(self):
        model = lib.write_hf(self.path("hf"), lib.TinyModel(
            n_layers=2, d_model=256, n_heads=4, n_kv_heads=4, d_ff=1024), "bf16")
        text = self.write("t.txt", TEXT)
        for args in (["--method", "gptq:shrink=0.1,fit=absmax,polish=0", "--check", "0"],
                     ["--method", "rtn:search"]):
            command = ["quantize", model, "-o", self.path("out"), "--scheme", "W4A16:g32",
                       "--calib", text, *SET, "--threads", "1", "--json", "--force", *args]
            (dry,) = lib.json_lines(self.ok(*command, "--dry-run"))
            (real,) = lib.json_lines(self.ok(*command))
            self.assertEqual(dry["bytes"], real["bytes"])
            size = sum(os.path.getsize(self.path("out", f)) for f in os.listdir(self.path("out"))
                       if f.endswith(".safetensors"))
            self.assertLess(abs(size - dry["bytes"]), 0.02 * size)
            self.assertEqual(dry["memory_bytes"], real["memory_bytes"])
            if not sanitized():  # which keeps memory of its own
                # An upper bound: of a short text much of what is set aside is not touched.
                self.assertLess(real["peak_rss_bytes"], dry["memory_bytes"])
                self.assertGreater(real["peak_rss_bytes"], 0.3 * dry["memory_bytes"])


if __name__ == "__main__":
    lib.main()
