"""Recipes and mixtures on the command line: rules come back as they went in, budgets are kept, and
what was found by measurement can be fed back to the same bytes."""

import hashlib
import json
import os
import struct

import lib

MODEL = lib.TinyModel()
WORDS = "the cat sat on the mat, and 12 dogs looked on.\nNobody knew why; it's odd.\n\n".split(" ")
TEXT = " ".join(WORDS[i * i % len(WORDS)] + "ab"[i % 2] for i in range(700))
RULES = """\
# a comment, and an empty line

*                         = W4A16:ASYM,g32
*.{q,k}_proj   = w8a16    method hqq  because "few \\"heads\\""
model.layers.0.mlp.down_proj = keep # as it was
"""
CANONICAL = """\
* = W4A16:g32,asym method rtn:search
*.{q,k}_proj = W8A16 method hqq because "few \\"heads\\""
model.layers.0.mlp.down_proj = keep
"""


def digest(folder):
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def read_safetensors(path):
    """name -> bytes"""
    with open(path, "rb") as f:
        raw = f.read()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    return {name: raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]]
            for name, t in header.items() if name != "__metadata__"}


class Recipes(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")

    def inspect(self, path):
        *tensors, _ = lib.json_lines(self.ok("inspect", path, "--json"))
        return {t["name"]: t for t in tensors}

    def report(self, folder):
        with open(os.path.join(folder, "nibble-report.json")) as f:
            return json.load(f)

    def test_rules_are_printed_and_read_again(self):
        rules = self.write("r.txt", RULES)
        args = ("quantize", self.model, "--dry-run", "--print-recipe", "--method", "rtn:search")
        first = self.ok(*args, "--recipe", rules)
        self.assertEqual(first, CANONICAL)
        again = self.write("again.txt", first)
        self.assertEqual(self.ok(*args, "--recipe", again), first)
        self.assertEqual(self.ok(*args, "--scheme", "w4a16:g32"), "* = W4A16:g32 method rtn:search\n")

    def test_each_layer_gets_what_its_rule_says(self):
        rules, out = self.write("r.txt", RULES), self.path("out")
        (line,) = lib.json_lines(self.ok("quantize", self.model, "-o", out, "--recipe", rules,
                                         "--json"))
        self.assertEqual((line["scheme"], line["method"], line["group_size"]),
                         ("mixed", "mixed", None))
        for name, t in self.inspect(out).items():
            if name == "model.layers.0.mlp.down_proj.weight" or not name.endswith("_proj.weight"):
                self.assertEqual(t["format"], "bf16", name)
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                self.assertEqual((t["format"], t["symmetric"]), ("int8", True), name)
            else:
                self.assertEqual((t["format"], t["group_size"], t["symmetric"]), ("int4", 32, False))
        report = self.report(out)
        self.assertEqual(report["recipe"], CANONICAL.replace(":search", ""))
        self.assertEqual(report["reasons"], [{"layers": "*.{q,k}_proj", "scheme": "W8A16",
                                              "because": 'few "heads"'}])
        self.assertEqual(report["method"], "mixed")

    def test_one_rule_is_a_scheme(self):
        """The same bytes, said in two ways."""
        rules = self.write("r.txt", "* = W4A16:g32 method hqq\n")
        self.ok("quantize", self.model, "-o", self.path("a"), "--recipe", rules)
        self.ok("quantize", self.model, "-o", self.path("b"), "-s", "W4A16:g32", "-m", "hqq")
        self.assertEqual(digest(self.path("a")), digest(self.path("b")))

    def test_methods_mix_on_a_walk(self):
        """Layers of one point by three methods, with what each of them needs. Where all see the
        original's activations, and no parameter is chosen for a point as a whole, each layer is as
        if its method had taken all."""
        rules = self.write("r.txt", "* = W4A16:g32 method gptq:shrink=0.3\n"
                                    "*.k_proj = W8A16 method rtn\n"
                                    "*.v_proj = W4A16:g32 method rtn:search\n")
        text = self.write("t.txt", TEXT)
        calib = ("--calib", text, "--calib-samples", "4", "--calib-len", "32", "--calib-flow",
                 "original")
        out, one, two = self.path("out"), self.path("one"), self.path("two")
        self.ok("quantize", self.model, "-o", out, "--recipe", rules, *calib)
        again = self.path("again")
        self.ok("quantize", self.model, "-o", again, "--recipe", rules, *calib, "--threads", "3")
        self.assertEqual(digest(out), digest(again))
        self.ok("quantize", self.model, "-o", one, "-s", "W4A16:g32", "-m", "gptq:shrink=0.3", *calib)
        self.ok("quantize", self.model, "-o", two, "-s", "W4A16:g32", "-m", "rtn:search", *calib)
        mixed, gptq, rtn = (read_safetensors(os.path.join(f, "model.safetensors"))
                            for f in (out, one, two))
        for name in mixed:
            if ".q_proj." in name or ".mlp." in name:
                self.assertEqual(mixed[name], gptq[name], name)
            if ".v_proj." in name:
                self.assertEqual(mixed[name], rtn[name], name)

    def test_what_is_wrong_is_named(self):
        out = ("quantize", self.model, "-o", self.path("o"))
        cases = [
            ("* = W4A16\n* = W9A16\n", 2, "r.txt:2: unknown scheme 'W9A16'"),
            ("* = W4A16\n*.nothing = keep\n", 2, "r.txt:2: '*.nothing' matches no linear"),
            ("* = W4A16\n*.q_proj = Q4_0\n", 2, "r.txt:2: scheme Q4_0 is for gguf"),
            ("* = Q4_0\n", 2, "a Hugging Face folder cannot hold it"),
            ("* = W4A16:g24\n", 1, "r.txt:1: "),
            ("* = keep\n", 2, "keeps everything"),
            ("* = Q4_K_M\n", 2, "no format, but a mixture of several"),
            ("* = IQ4_XS\n", 1, "iq4_xs, for which nibble has no encoder"),
            ("* = W4A16 method gptq\n*.q_proj = W4A16 method autoround:iters=2\n", 1,
             "tunes all weights of a block together"),
        ]
        text = self.write("t.txt", TEXT)
        for rules, code, message in cases:
            r = self.write("r.txt", rules)
            self.assertIn(message, self.fails(code, *out, "--recipe", r, "--calib", text,
                                              "--calib-samples", "2", "--calib-len", "16"), rules)
        r = self.write("r.txt", "* = W4A16\n")
        for args, message in [
            (("--recipe", r, "--scheme", "W4A16"), "--scheme and --recipe both say"),
            (("--bpw", "4", "--size", "1M"), "--bpw and --size both say"),
            (("--recipe", r, "--candidates", "W4A16"), "--candidates is for mixtures"),
            (("--recipe", r, "--print-recipe"), "goes with --dry-run"),
            (("--bpw", "5"), "--bpw measures on a text"),
            (("--bpw", "5", "--to", "gptq"), "gptq has one for all layers"),
            ((), "no scheme given"),
        ]:
            self.assertIn(message, self.fails(2, *out, *args))
        self.assertFalse(os.path.exists(self.path("o")))


class Mixtures(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)

    def command(self, out, *args, tokens="64", candidates="W3A16:g32,asym;W4A16:g32;W8A16"):
        return ("quantize", self.model, "-o", self.path(out), "--calib", self.text,
                "--calib-samples", "9", "--calib-len", "32", "--mix-tokens", tokens, "--method",
                "rtn:search", "--candidates", candidates, *args)

    def mixed(self, out, *args):
        self.ok(*self.command(out, *args))
        with open(self.path(out, "nibble-report.json")) as f:
            return json.load(f)

    def test_bits_per_weight(self):
        report = self.mixed("out", "--bpw", "4.75")
        mixture = report["mixture"]
        self.assertLessEqual(mixture["bpw"], 4.75)
        self.assertGreater(mixture["bpw"], 4.5)
        self.assertEqual((mixture["chosen"], mixture["uniform"]["scheme"]), ("mixture", "W4A16:g32"))
        self.assertLess(mixture["kl"], mixture["uniform"]["kl"])
        self.assertFalse(os.path.exists(self.path("out.nibble-mix")))
        # What the table promised lies in the file: codes, scales and zero points, and a shape each.
        chosen = dict(line.split(" ")[:3:2] for line in report["recipe"].splitlines())
        promised = sum(c["bytes"] - 16 for row in mixture["layers"] for c in row["candidates"]
                       if c["scheme"] == chosen[row["name"][:-len(".weight")]])
        *tensors, _ = lib.json_lines(self.ok("inspect", self.path("out"), "--json"))
        linears = [t for t in tensors if t["name"].endswith("_proj.weight")]
        n_params = sum(t["shape"][0] * t["shape"][1] for t in linears)
        self.assertEqual(sum(t["bytes"] - 16 for t in linears), promised)
        self.assertAlmostEqual(8 * promised / n_params, mixture["bpw"])
        # Fed back, the rules give the same bytes.
        rules = self.write("r.txt", report["recipe"])
        self.ok("quantize", self.model, "-o", self.path("again"), "--recipe", rules, "--calib",
                self.text, "--calib-samples", "9", "--calib-len", "32")
        self.assertEqual(digest(self.path("out")), digest(self.path("again")))

    def test_size(self):
        """The file is as large as was allowed, or a little smaller."""
        for size in (82000, 90000):
            report = self.mixed("out%d" % size, "--size", str(size), "--threads", "2")
            got = os.path.getsize(self.path("out%d" % size, "model.safetensors"))
            self.assertEqual(report["bytes"], got)
            self.assertLessEqual(got, size)
            self.assertGreater(got, 0.93 * size)

    def test_divergence(self):
        loose, tight = (self.mixed("kl%g" % kl, "--max-kl", str(kl)) for kl in (0.05, 0.005))
        self.assertLessEqual(loose["mixture"]["kl"], 0.05)
        self.assertLessEqual(tight["mixture"]["kl"], 0.005)
        self.assertLess(loose["mixture"]["bpw"], tight["mixture"]["bpw"])

    def test_uniform_is_written_where_it_is_no_worse(self):
        """With the bits of one candidate and nothing to mix it with."""
        self.ok(*self.command("out", "--bpw", "4.5", candidates="W4A16:g32"))
        with open(self.path("out", "nibble-report.json")) as f:
            report = json.load(f)
        self.assertEqual(report["mixture"]["chosen"], "uniform")
        self.assertTrue(report["recipe"].startswith(
            '* = W4A16:g32 method rtn:search because "no mixture of these bytes was better'))

    def test_what_cannot_be_met(self):
        for args, message in [
            (("--bpw", "3"), "the smallest of these candidates give 3."),
            (("--size", "1000"), "--size 1000: the smallest of these candidates give "),
            (("--max-kl", "0"), "the best of these candidates give "),
        ]:
            self.assertIn(message, self.fails(4, *self.command("out", *args)))
            self.assertFalse(os.path.exists(self.path("out")))
            # What the bytes alone tell is told before anything is measured.
            self.assertEqual(os.path.exists(self.path("out.nibble-mix")), args[0] == "--max-kl")
            if args[0] != "--max-kl":
                self.assertIn(message, self.fails(4, *self.command("out", *args), "--dry-run"))

    def test_measurements_are_kept(self):
        """A dry run knows no more than what is there, and leaves nothing; --print-recipe measures,
        and what comes after goes on from that; another text does not."""
        args = self.command("out", "--bpw", "4.75")
        before = sorted(os.listdir(self.folder))
        (plan,) = lib.json_lines(self.ok(*args, "--dry-run", "--json"))
        self.assertEqual((plan["mixture"]["measured"], plan["mixture"]["stand_in"]),
                         (False, "W4A16:g32"))
        for key in ("seconds", "memory_bytes", "disk_bytes"):
            self.assertGreater(plan["mixture"][key], 0)
        self.assertIn("nothing is measured yet", self.fails(2, *args, "--dry-run", "--print-recipe"))
        self.assertEqual(sorted(os.listdir(self.folder)), before)
        first = lib.nibble(*args, "--print-recipe")
        self.assertIn("measuring 14 layers", first.err)
        self.assertEqual(sorted(os.listdir(self.folder)), sorted(before + ["out.nibble-mix"]))
        second = lib.nibble(*args, "--dry-run", "--print-recipe")
        self.assertNotIn("measuring", second.err)
        self.assertEqual(first.out, second.out)
        other = lib.nibble(*self.command("out", "--bpw", "4.75", tokens="48"), "--dry-run")
        self.assertIn("measuring 14 layers", other.err)

    def test_what_is_measured_is_what_is_written(self):
        """The default method of a mixture is rtn:search; a method on rows alone is measured with,
        and what the output has lost is told, and judged."""
        for method, measured in (((), "rtn:search"), (("--method", "rtn"), "rtn")):
            out = self.path("m%d" % len(method))
            args = [a for a in self.command("x", "--max-kl", "0.02") if a not in ("--method", "rtn:search")]
            args[args.index("-o") + 1] = out
            self.ok(*args, *method)
            with open(os.path.join(out, "nibble-report.json")) as f:
                report = json.load(f)
            mixture = report["mixture"]
            self.assertEqual((mixture["measured_with"], report["method"]), (measured, measured))
            self.assertEqual(mixture["output_kl"] if mixture["chosen"] == "mixture" else
                             mixture["uniform"]["output_kl"], report["evaluation"]["kl_mean"])
            self.assertLessEqual(report["evaluation"]["kl_mean"], 0.02)
        self.assertIn("--check 0 cannot be", self.fails(2, *self.command("o", "--max-kl", "1",
                                                                         "--check", "0")))

    def test_an_output_that_breaks_the_bound_is_made_anew(self):
        """Measured without the transform, the choice says too little of the output: between what
        was measured and what the output has, the first output breaks the bound."""
        def run(out, kl):
            return lib.nibble(*self.command(out, "--max-kl", repr(kl), "--transform",
                                            "smoothquant:alpha=1", candidates="W4A16:channel;W8A16"))

        def mixture(out):
            with open(self.path(out, "nibble-report.json")) as f:
                return json.load(f)["mixture"]

        self.assertEqual(run("first", 0.02).code, 0)
        first = mixture("first")
        self.assertEqual(first["outputs"], 1)
        self.assertGreater(first["output_kl"], first["kl"])
        bound = (first["output_kl"] + first["kl"]) / 2
        r = run("second", bound)
        self.assertEqual(r.code, 0, r.err)
        self.assertIn("once more", r.err)
        second = mixture("second")
        self.assertGreater(second["outputs"], 1)
        self.assertLessEqual(second["output_kl"], bound)
        self.assertGreater(second["bpw"], first["bpw"])
        self.assertEqual(sorted(os.listdir(self.folder)), ["first", "hf", "second", "t.txt"])

    def test_a_bound_that_no_output_holds(self):
        """8-bit weights under a wild transform, against what they cost without it."""
        def run(out, kl, *args):
            return lib.nibble(*self.command(out, "--max-kl", repr(kl), *args, candidates="W8A16:g32"))

        wild = ("--transform", "smoothquant:alpha=1")
        self.assertEqual(run("loose", 1.0, *wild).code, 0)
        with open(self.path("loose", "nibble-report.json")) as f:
            mixture = json.load(f)["mixture"]
        measured, had = mixture["kl"], mixture["output_kl"]
        self.assertGreater(had, measured)
        r = run("out", (measured + had) / 2, *wild)
        self.assertEqual(r.code, 4, r.err)
        self.assertIn("the output of the best of these candidates has ", r.err)
        self.assertFalse(os.path.exists(self.path("out")))
        self.assertEqual([n for n in os.listdir(self.folder) if "tmp" in n], [])


if __name__ == "__main__":
    lib.main()
