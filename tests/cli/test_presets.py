"""Presets: --scheme Q4_K_M and its kin on the command line. Each tensor has the format that llama.cpp
gives it, what does not fit is named, and the bytes depend on nothing but the model."""

import json
import os
import struct

import lib

N_LAYERS = 9
# use_more_bits of nine layers: the first, the last, and every third between
MORE_BITS = {0, 3, 6, 7, 8}
PRESETS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")
FALLBACKS = {"q2_k": "iq4_nl", "q3_k": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
RECIPE = """\
* = Q4_K method rtn:search
model.layers.{0,3,6,7,8}.{self_attn.v_proj,mlp.down_proj} = Q6_K method rtn:search because "the \
first and last eighth of the layers, and every third between"
model.embed_tokens = Q6_K method rtn:search because "is the output as well"
"""


def whole_file(path):
    with open(path, "rb") as f:
        return f.read()


def file_type(path):
    """general.file_type of a GGUF, wherever it is among the keys."""
    raw = whole_file(path)
    at = raw.index(b"general.file_type") + len("general.file_type")
    kind, value = struct.unpack_from("<II", raw, at)
    assert kind == 4, kind
    return value


class Presets(lib.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Rows of 64 in q, k, v, gate and up, of 256 in down: both kinds in one model.
        cls.mixed = lib.TinyModel(n_layers=N_LAYERS, d_ff=256)
        cls.whole = lib.TinyModel(seed=2, n_layers=1, d_model=256, n_heads=4, n_kv_heads=1, d_ff=256,
                                  tied=False)

    def inspect(self, path):
        *tensors, _ = lib.json_lines(self.ok("inspect", path, "--json"))
        return {t["name"]: t["format"] for t in tensors}

    def test_q4_k_m_as_llama_cpp_has_it(self):
        source = lib.write_hf(self.path("hf"), self.mixed, "bf16")
        out = self.path("x.gguf")
        (line,) = lib.json_lines(self.ok("quantize", source, "-o", out, "--scheme", "q4_k_m", "--json"))
        self.assertEqual((line["scheme"], line["container"]), ("Q4_K_M", "gguf"))
        self.assertEqual(file_type(out), 15)
        for name, fmt in self.inspect(out).items():
            if "norm" in name:
                want = "f32"
            elif name.startswith("model.embed"):
                want = "q8_0"
            else:
                more = int(name.split(".")[2]) in MORE_BITS
                want = "q6_k" if more and ("v_proj" in name or "down_proj" in name) else "q4_k"
                if "down_proj" not in name:
                    want = FALLBACKS[want]
            self.assertEqual(fmt, want, name)

    def test_the_report_names_what_fell_back(self):
        source = lib.write_hf(self.path("hf"), self.mixed, "bf16")
        out = self.path("x.gguf")
        self.ok("quantize", source, "-o", out, "--scheme", "Q4_K_M")
        (name,) = [n for n in os.listdir(self.folder) if n.endswith("nibble-report.json")]
        with open(self.path(name)) as f:
            report = json.load(f)
        fell = {f["wanted"]: f for f in report["fallbacks"]}
        self.assertEqual({w: f["became"] for w, f in fell.items()}, {"q4_k": "q5_0", "q6_k": "q8_0"})
        self.assertEqual(set(fell["q6_k"]["layers"]),
                         {"model.embed_tokens"} | {"model.layers.%d.self_attn.v_proj" % i
                                                   for i in MORE_BITS})
        self.assertEqual(len(fell["q4_k"]["layers"]), 6 * N_LAYERS - len(MORE_BITS))
        self.assertIn("no whole blocks of 256", fell["q4_k"]["because"])
        told = [n for n in report["notes"] if "instead of" in n]
        self.assertEqual(len(told), 2)
        self.assertEqual(len(report["reasons"]), 2)

    def test_scales_that_hang_together_and_methods_that_learn(self):
        """Super-blocks, nested scales, one scale for all rows: what a walk makes of a layer is what the
        file holds of it."""
        source = lib.write_hf(self.path("hf"), self.whole, "bf16")
        text = self.write("t.txt", "It was the best of times, it was the worst of times. " * 12)
        for scheme, most in (("Q2_K", 0.1), ("Q4_K", 0.01), ("NF4", 0.01), ("FP8:tensor", 0.01)):
            out = self.path("o.gguf" if scheme[0] == "Q" else "o")
            self.ok("quantize", source, "-o", out, "--force", "--scheme", scheme, "--method", "gptq",
                    "--calib", text, "--calib-len", "64", "--calib-samples", "8")
            kept = out + (".nibble-report.json" if scheme[0] == "Q" else "/nibble-report.json")
            with open(kept) as f:
                kl = json.load(f)["evaluation"]["kl_mean"]
            self.assertTrue(0 < kl < most, (scheme, kl))

    def test_the_recipe_is_printed_and_gives_the_same_bytes(self):
        source = lib.write_hf(self.path("hf"), self.mixed, "bf16")
        method = ("--method", "rtn:search")
        text = self.ok("quantize", source, "--to", "gguf", "--scheme", "Q4_K_M", *method, "--dry-run",
                       "--print-recipe")
        self.assertEqual(text, RECIPE)
        a, b, rules = self.path("a.gguf"), self.path("b.gguf"), self.write("r.txt", text)
        self.ok("quantize", source, "-o", a, "--scheme", "Q4_K_M", *method)
        self.ok("quantize", source, "-o", b, "--recipe", rules)
        # general.file_type may tell them apart: here most parameters are q5_0
        raw = [whole_file(p) for p in (a, b)]
        self.assertEqual(len(raw[0]), len(raw[1]))
        different = [i for i, (x, y) in enumerate(zip(*raw)) if x != y]
        at = raw[0].index(b"general.file_type") + len("general.file_type") + 4
        self.assertEqual(different, [at])

    def test_every_preset_and_format_is_written_and_read(self):
        source = lib.write_hf(self.path("hf"), self.whole, "bf16")
        types = {}
        for preset in PRESETS:
            out = self.path(preset + ".gguf")
            (line,) = lib.json_lines(self.ok("quantize", source, "-o", out, "--scheme", preset,
                                             "--json"))
            self.assertEqual(line["notes"], [])
            formats = self.inspect(out)
            self.assertEqual(formats["lm_head.weight"], "q6_k")
            self.assertEqual(formats["model.embed_tokens.weight"], preset[:4].lower())
            self.assertEqual(formats["model.layers.0.mlp.up_proj.weight"], preset[:4].lower())
            if preset == "Q2_K": # four heads to one of keys and values
                self.assertEqual(formats["model.layers.0.self_attn.v_proj.weight"], "q4_k")
            types[preset] = file_type(out)
            self.assertTrue(0 < line["rms_error"] < 0.35, line["rms_error"])
        self.assertEqual(list(types.values()), list(range(10, 19)))

    def test_the_same_bytes_on_every_instruction_set(self):
        source = lib.write_hf(self.path("hf"), self.whole, "bf16")
        for preset in ("Q2_K", "Q3_K_M", "Q6_K"):
            sums = set()
            for args in (("--isa", "scalar"), ("--isa", "auto", "--threads", "3")):
                (line,) = lib.json_lines(self.ok("quantize", source, "-o", self.path("o.gguf"),
                                                 "--scheme", preset, "--force", "--json", *args))
                sums.add(line["sha256"])
            self.assertEqual(len(sums), 1, preset)

    def test_what_cannot_be_is_said(self):
        source = lib.write_hf(self.path("hf"), self.mixed, "bf16")
        self.assertIn("Q4_K_M", self.fails(2, "quantize", source, "-o", self.path("folder"), "--scheme",
                                           "Q4_K_M"))
        self.assertIn("takes no modifiers", self.fails(2, "quantize", source, "-o", self.path("x.gguf"),
                                                       "--scheme", "Q4_K:g32"))
        self.assertIn("mixture of several", self.fails(2, "quantize", source, "-o", self.path("x.gguf"),
                                                       "--scheme", "Q4_K_X"))


if __name__ == "__main__":
    lib.main()
