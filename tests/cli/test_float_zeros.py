"""Float zero points, in the layout of HQQ: quantize, inspect, run, verify and convert such folders."""

import json
import os

import lib

MODEL = lib.TinyModel()
LINEARS = [n for n in MODEL.tensors if n.endswith("_proj.weight")]
SCHEME = "W4A16:g32,asym,zero=float"


class FloatZeros(lib.Case):
    def quantized(self, name, scheme=SCHEME, method="hqq"):
        source = self.path("hf")
        if not os.path.exists(source):
            lib.write_hf(source, MODEL, "bf16")
        out = self.path(name)
        (line,) = lib.json_lines(self.ok("quantize", source, "-o", out, "--scheme", scheme,
                                         "--method", method, "--force", "--json"))
        return out, line

    def test_what_is_in_the_folder(self):
        out, line = self.quantized("out")
        self.assertEqual(line["scheme"], SCHEME)
        self.assertEqual(line["linear_bpw"], 4 + (16 + 16) / 32)
        with open(os.path.join(out, "config.json")) as f:
            q = json.load(f)["quantization_config"]
        self.assertEqual((q["quant_method"], q["skip_modules"]), ("hqq", ["lm_head"]))
        params = q["quant_config"]["weight_quant_params"]
        self.assertEqual((params["nbits"], params["group_size"], params["axis"]), (4, 32, 1))
        *tensors, _ = lib.json_lines(self.ok("inspect", out, "--json"))
        for t in tensors:
            want = ("int4", False, "bf16") if t["name"] in LINEARS else ("bf16", None, None)
            self.assertEqual((t["format"], t.get("symmetric"), t.get("zero_type")), want)
        self.assertIn("int4 group 32 asym, float zeros", self.ok("inspect", out))

    def test_threads_and_methods(self):
        """Bytes depend on the method, and on nothing else."""
        seen = {}
        for threads in "13":
            for method in ("rtn", "rtn:search", "hqq"):
                source = lib.write_hf(self.path("hf"), MODEL, "bf16")
                (line,) = lib.json_lines(self.ok(
                    "quantize", source, "-o", self.path("out"), "--scheme", SCHEME, "--method",
                    method, "--threads", threads, "--force", "--json"))
                seen.setdefault(method, set()).add(line["sha256"])
        self.assertEqual([len(s) for s in seen.values()], [1, 1, 1])
        self.assertEqual(len(set.union(*seen.values())), 3)

    def test_the_bit_matrix(self):
        for scheme in (SCHEME, "W8A16:g32,zero=float"):
            out, _ = self.quantized("out", scheme)
            line = lib.json_lines(self.ok("verify", out, "--tokens", "12", "--kv", "f32", "--json",
                                          "-q"))[0]
            self.assertIsNone(line["mismatch"])
            self.assertEqual([h["compute"] for h in line["hashes"]], ["f", "i8", "i16"])
            self.assertEqual(len({h["logits_hash"] for h in line["hashes"]}), 3)

    def test_converting(self):
        out, _ = self.quantized("out")
        same = self.path("same")
        self.ok("convert", out, "-o", same)
        for name in ("model.safetensors", "config.json"):
            with open(os.path.join(out, name), "rb") as a, open(os.path.join(same, name), "rb") as b:
                self.assertEqual(a.read(), b.read(), name)
        self.ok("convert", out, "-o", self.path("floats"), "--dtype", "f32")
        self.ok("convert", out, "-o", self.path("m.gguf"), "--dtype", "bf16")
        for target, words in (("gptq", "float zero points"), ("awq", "float zero points"),
                              ("gguf", "no lossless GGUF form")):
            name = self.path("no.gguf" if target == "gguf" else "no")
            self.assertIn(words, self.fails(1, "convert", out, "-o", name, "--to", target))
            self.assertFalse(os.path.exists(name))

    def test_what_no_container_has(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        for args, words in ((["--scheme", SCHEME, "--to", "gptq_v2"], "integer zero points only"),
                            (["--scheme", SCHEME, "--to", "gguf"], "cannot hold it"),
                            (["--scheme", "W8A8:zero=float"], "float zero points")):
            self.assertIn(words, self.fails(2, "quantize", source, "-o", self.path("no"), *args))


if __name__ == "__main__":
    lib.main()
