"""Static scales of activations, from the outside: chosen from a text, kept in the folder, used when it
runs, and refused where they are none or have no place."""

import json
import os
import shutil
import struct

import lib

MODEL = lib.TinyModel(n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64)
WORDS = "the cat sat on the mat, and 12 dogs looked on; nobody knew why it is odd".split(" ")
TEXT = " ".join(WORDS[i * i % len(WORDS)] + "ab"[i % 2] for i in range(400))
SET = ["--calib-samples", "4", "--calib-len", "32", "--check", "0"]
GROUPS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
          ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))


def read_tensors(folder):
    """Name to (dtype, shape, bytes) of model.safetensors, and the file's header."""
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        raw = f.read()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
            for name, t in header.items()}


def change(folder, change_tensor):
    """Writes model.safetensors anew with what change_tensor(name, dtype, shape, bytes) makes of each
    tensor; None leaves it out."""
    header, data = {}, b""
    for name, tensor in read_tensors(folder).items():
        made = change_tensor(name, *tensor)
        if made is not None:
            header[name] = {"dtype": made[0], "shape": made[1], "data_offsets": [len(data), len(data) + len(made[2])]}
            data += made[2]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


class Static(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)

    def quantize(self, name, scheme, *args):
        out = self.path(name)
        (line,) = lib.json_lines(self.ok("quantize", self.model, "-o", out, "--scheme", scheme, "--calib", self.text,
                                         *SET, "--json", *args))
        return out, line

    def scales(self, folder):
        return {name: struct.unpack("<f", raw)[0] for name, (dtype, shape, raw) in read_tensors(folder).items()
                if name.endswith(".input_scale") and self.assertEqual((dtype, shape), ("F32", [1])) is None}

    def logits(self, folder, *args):
        return json.loads(self.ok("run", folder, "the cat", "-n", "4", "--json", *args).splitlines()[-1])["logits_hash"]

    def test_folder_and_report(self):
        for scheme, kind, fmt in (("W8A8:static", "int", "int-quantized"), ("FP8:static", "float", "float-quantized"),
                                  ("W4A8:g32,static", "int", "pack-quantized")):
            out, _ = self.quantize(kind + fmt, scheme)
            with open(os.path.join(out, "config.json")) as f:
                quantization = json.load(f)["quantization_config"]
            (group,) = quantization["config_groups"].values()
            act = group["input_activations"]
            self.assertEqual((act["dynamic"], act["strategy"], act["num_bits"], act["type"], act["symmetric"]),
                             (False, "tensor", 8, kind, True))
            self.assertEqual(group.get("format", quantization["format"]), fmt)
            scales = self.scales(out)
            self.assertEqual(len(scales), 2 * 7)
            for layer in range(2):
                for group in GROUPS:  # what reads the same inputs has the same scale
                    found = {scales["model.layers.%d.%s.input_scale" % (layer, name)] for name in group}
                    self.assertEqual(len(found), 1)
                    self.assertGreater(found.pop(), 0)
            with open(os.path.join(out, "nibble-report.json")) as f:
                self.assertEqual(json.load(f)["calibration"]["observer"], "mse")
            lines = lib.json_lines(self.ok("inspect", out, "--json"))
            shown = {line["name"]: line["activation_scale"] for line in lines if "activation_scale" in line}
            self.assertEqual(shown, {name.replace("input_scale", "weight"): scale for name, scale in scales.items()})

    def test_same_bytes_and_logits_everywhere(self):
        for scheme in ("W8A8:static", "FP8:static"):
            out, line = self.quantize(scheme, scheme, "--threads", "1")
            _, other = self.quantize(scheme + "3", scheme, "--threads", "3", "--isa", "scalar")
            self.assertEqual(line["sha256"], other["sha256"])
            want = self.logits(out)
            for args in (["--threads", "1"], ["--threads", "3"], ["--isa", "scalar"]):
                self.assertEqual(self.logits(out, *args), want)
            self.assertNotEqual(self.logits(out, "--compute", "f"), want)
            dynamic, _ = self.quantize(scheme + "d", scheme.split(":")[0], "--force")
            self.assertNotEqual(self.logits(dynamic), want)

    def test_each_observer_chooses_for_itself(self):
        found = {}
        for observer in ("minmax", "average", "percentile=95", "entropy", "mse"):
            out, _ = self.quantize(observer.replace("=", ""), "W8A8:static", "--observer", observer)
            found[observer] = self.scales(out)
        for observer in ("average", "percentile=95", "entropy", "mse"):
            self.assertNotEqual(found[observer], found["minmax"])
        # The first layer sees the same inputs in all of them, and nothing is wider than their extremes.
        name = "model.layers.0.self_attn.q_proj.input_scale"
        for scales in found.values():
            self.assertLessEqual(scales[name], found["minmax"][name] * 1.0001)

    def test_with_methods_transforms_and_recipes(self):
        plain = self.scales(self.quantize("plain", "W8A8:static")[0])
        smooth = self.scales(self.quantize("smooth", "W8A8:static", "--transform", "smoothquant:alpha=0.5")[0])
        self.assertNotEqual(plain, smooth)
        self.quantize("gptq", "W4A8:g32,static", "--method", "gptq:shrink=0.1", "--transform", "smoothquant")
        self.quantize("tuned", "W4A8:g32,static", "--method", "autoround:iters=2,batch=1,len=16")
        recipe = self.write("r.txt", "* = W8A8:static\n*.mlp.down_proj = W8A8\n")
        out = self.path("mixed")
        self.ok("quantize", self.model, "-o", out, "--recipe", recipe, "--calib", self.text, *SET)
        self.assertEqual(len(self.scales(out)), 2 * 6)
        self.assertTrue(self.logits(out))

    def test_what_is_refused(self):
        out = self.path("no")
        common = ["quantize", self.model, "-o", out]
        calib = ["--calib", self.text, *SET]
        for args, words in (
                (["--scheme", "W8A8:static"], "static scales of activations are chosen from a text: --calib FILE"),
                (["--scheme", "FP8:static"], "--calib FILE names one"),
                (["--scheme", "W8A8", *calib, "--observer", "mse"], "no layer here gets any"),
                (["--scheme", "W8A8:static", *calib, "--observer", "kl"], "unknown observer 'kl'"),
                (["--scheme", "W8A8:static", *calib, "--calib-flow", "original"], "they need the quantized flow"),
                (["--scheme", "W4A16:static", *calib], "activations are not quantized here"),
                (["--bpw", "6", "--candidates", "W8A8:static; W4A16:g32", *calib], "candidate W8A8:static"),
        ):
            self.assertIn(words, self.fails(2, *common, *args))
            self.assertFalse(os.path.exists(out))
        self.assertIn("a GGUF cannot hold it", self.fails(
            2, "quantize", self.model, "-o", self.path("no.gguf"), "--scheme", "W8A8:static", *calib))

    def test_other_containers(self):
        out, _ = self.quantize("out", "W8A8:g32,static")
        self.assertIn("static", self.fails(1, "convert", out, "-o", self.path("x.gguf")))
        self.ok("convert", out, "-o", self.path("y.gguf"), "--requantize")
        self.ok("convert", out, "-o", self.path("copy"))
        self.assertEqual(self.logits(self.path("copy")), self.logits(out))
        self.assertEqual(self.scales(self.path("copy")), self.scales(out))

    def test_hostile_scales(self):
        out, _ = self.quantize("out", "W8A8:static")
        name = "model.layers.1.mlp.down_proj.input_scale"

        def put(dtype, shape, raw):
            return lambda n, *tensor: (dtype, shape, raw) if n == name else tensor

        cases = [(put("F32", [1], struct.pack("<f", v)), "is no scale")
                 for v in (0.0, -1.0, float("nan"), float("inf"), 1e-38)]
        cases += [(put("F32", [2], bytes(8)), "wanted one number, found [2]"),
                  (put("I32", [1], bytes(4)), "I32"),
                  (lambda n, *tensor: None if n == name else tensor, "has no input_scale")]
        for how, words in cases:
            bad = self.path("bad")
            shutil.copytree(out, bad)
            change(bad, how)
            for command in (["run", bad, "cat", "-n", "1"], ["inspect", bad]):
                error = self.fails(1, *command)
                self.assertIn(words, error)
            shutil.rmtree(bad)


if __name__ == "__main__":
    lib.main()
