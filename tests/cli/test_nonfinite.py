"""NaN and infinities in a model that something learns from: refused by name, or read as zeros
everywhere; and activations that overflow although every weight is a number."""

import copy
import hashlib
import json
import math
import os

import lib

MODEL = lib.TinyModel()
TEXT = "It was the best of times, it was the worst of times. " * 12
NORM = "model.layers.0.input_layernorm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
WAYS = (("--scheme", "W4A16:g32", "--method", "gptq"),
        ("--scheme", "W4A16:g32", "--transform", "awq"),
        ("--scheme", "W8A8", "--transform", "smoothquant"),
        ("--scheme", "W4A16:g32", "--method", "gptq", "--guide"),
        ("--bpw", "5", "--mix-tokens", "64"))


class Nonfinite(lib.Case):
    def setUp(self):
        super().setUp()
        self.text = self.write("t.txt", TEXT)

    def model(self, name, places, value):
        """The tiny model with `value` at the sixth place of some tensors."""
        changed = copy.deepcopy(MODEL)
        for place in places:
            changed.tensors[place][1][5] = value
        return lib.write_hf(self.path(name), changed, "f32")

    def huge_norm(self):
        changed = copy.deepcopy(MODEL)
        gains = changed.tensors[NORM][1]
        gains[:] = [1e38] * len(gains)
        return lib.write_hf(self.path("huge"), changed, "f32")

    def command(self, model, *args):
        return ("quantize", model, "-o", self.path("out"), "--force", "--calib", self.text,
                "--calib-len", "32", "--calib-samples", "3", *args)

    def made(self, model, *args):
        """The hash of the weights, and the report."""
        self.ok(*self.command(model, *args))
        with open(self.path("out", "model.safetensors"), "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        with open(self.path("out", "nibble-report.json")) as f:
            return digest, json.load(f)

    def test_refused_by_file_and_tensor_before_anything_is_learned(self):
        for place in (NORM, QUERY, EMBEDDING, "model.norm.weight"):
            model = self.model("m", (place,), math.nan)
            for way in WAYS if place == NORM else WAYS[:2]:
                said = self.fails(1, *self.command(model, *way))
                self.assertIn("%s: tensor '%s' holds nan at [0, 5]" % (model, place), said)
                self.assertIn("--nonfinite=zero", said)
                self.assertFalse(os.path.exists(self.path("out")))

    def test_read_as_zeros_by_all_that_learns(self):
        """What comes out is what comes out of a model that has zeros there."""
        places = (NORM, QUERY, EMBEDDING)
        broken = self.model("broken", places, math.inf)
        zeros = self.model("zeros", places, 0.0)
        for way in WAYS:
            digest, report = self.made(broken, *way, "--nonfinite", "zero")
            other, plain = self.made(zeros, *way)
            self.assertEqual(digest, other, way)
            self.assertEqual((report["zeroed"], plain["zeroed"]), (3, 0))
            self.assertEqual(report["evaluation"]["kl_mean"], plain["evaluation"]["kl_mean"])

    def test_a_scale_that_is_none_makes_zeros_of_its_block(self):
        """In a GGUF, whose rows of q lie interleaved and whose rows of down do not."""
        digests = []
        for bits in (b"\x00\x7e", b"\x00\x00"):
            tensors = []
            for name, dims, kind, raw in lib.gguf_tensors(MODEL, "q8_0"):
                if name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
                    raw = bits + raw[2:]
                tensors.append((name, dims, kind, raw))
            model = self.write("scale.gguf", lib.gguf_bytes(lib.gguf_keys(MODEL), tensors))
            zero = ("--nonfinite", "zero") if not digests else ()
            digest, report = self.made(model, *WAYS[0], *zero)
            digests.append(digest)
            self.assertEqual(report["zeroed"], 0 if len(digests) == 2 else 64)
        self.assertEqual(*digests)

    def test_activations_that_overflow_are_told_of_by_file_and_layer(self):
        model = self.huge_norm()
        for method in ("gptq", "autoround:iters=1,len=32,batch=1"):
            said = self.fails(1, *self.command(model, "--scheme", "W8A8", "--method", method))
            self.assertIn("%s: layer 0: the activations hold Inf or NaN" % model, said)
        said = self.fails(1, *self.command(model, "--bpw", "5", "--mix-tokens", "64"))
        self.assertIn(model + ": ", said)
        self.assertNotIn("tensor", said)

    def test_layers_that_fell_back_are_told_of(self):
        done = lib.nibble(*self.command(self.huge_norm(), "--scheme", "W4A16:g32", "--method",
                                        "gptq"))
        self.assertEqual(done.code, 0, done.err)
        (warning,) = [line for line in done.err.splitlines() if "learned nothing" in line]
        self.assertIn("layers learned nothing from the text, model.layers.0.self_attn.q_proj",
                      warning)
        self.assertIn("no finite numbers: rounded to nearest", warning)
        with open(self.path("out", "nibble-report.json")) as f:
            report = json.load(f)
        self.assertEqual(["learned nothing" in note for note in report["notes"]].count(True), 1)
        fallen = [one for one in report["calibration"]["layers"] if one.get("fell_back")]
        self.assertTrue(fallen)
        for one in fallen:
            self.assertNotEqual(one.get("loss"), 0, one)
            self.assertNotIn("held_out_loss", one)
        # A model whose numbers are numbers has no such layer.
        _, report = self.made(lib.write_hf(self.path("hf"), MODEL, "f32"), "--scheme",
                              "W4A16:g32", "--method", "gptq")
        self.assertEqual(report["notes"], [])
        self.assertFalse(any("fell_back" in one for one in report["calibration"]["layers"]))


if __name__ == "__main__":
    lib.main()
