"""Static scales of the KV cache, from the outside: chosen from a text, kept in the folder, used by all that
runs it, and refused where they have no place."""

import json
import math
import os
import struct

import lib
from test_static import change, read_tensors

MODEL = lib.TinyModel(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64)
SET = ["--calib-samples", "3", "--calib-len", "24", "--calib-pack", "none", "--check", "0"]
IDS = [[(7 + 11 * s + 5 * i * (i + s)) % MODEL.vocab_size for i in range(24)] for s in range(3)]
PARTS = ("k_scale", "v_scale")


def keys_and_values(model, ids):
    """Of layer 0, in binary64: for each token the keys after RoPE and the values, by head."""
    d, h, n = model.d_model, model.head_dim, model.n_kv_heads
    embed = model.tensors["model.embed_tokens.weight"][1]
    gain = model.tensors["model.layers.0.input_layernorm.weight"][1]
    both = [model.tensors["model.layers.0.self_attn.%s_proj.weight" % c][1] for c in "kv"]
    out = []
    for pos, token in enumerate(ids):
        x = embed[token * d:(token + 1) * d]
        r = 1 / math.sqrt(sum(v * v for v in x) / d + model.eps)
        x = [v * r * g for v, g in zip(x, gain)]
        k, v = ([sum(w[row * d + i] * x[i] for i in range(d)) for row in range(n * h)] for w in both)
        for head in range(n):
            for i in range(h // 2):
                t = pos * model.rope_theta ** (-2 * i / h)
                a, b = head * h + i, head * h + i + h // 2
                k[a], k[b] = k[a] * math.cos(t) - k[b] * math.sin(t), k[b] * math.cos(t) + k[a] * math.sin(t)
        out.append(([k[i * h:(i + 1) * h] for i in range(n)], [v[i * h:(i + 1) * h] for i in range(n)]))
    return out


def rounded_up(x):
    """To the upper half of binary32; fails where binary32 sums might say something else."""
    def up(y):
        (bits,) = struct.unpack("<I", struct.pack("<f", y))
        return struct.pack("<I", bits + 0xffff & 0xffff0000)
    assert up(x * 0.999995) == up(x * 1.000005), "choose another text"
    return up(x)


class KvScales(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "f32")
        self.text = self.write("t.jsonl", "".join(json.dumps({"input_ids": s}) + "\n" for s in IDS))
        self.calib = ["--calib", self.text, *SET]

    def quantize(self, name, *args):
        out = self.path(name)
        (line,) = lib.json_lines(self.ok("quantize", self.model, "-o", out, *self.calib, "--json", *args))
        return out, line

    def scales(self, folder):
        return {n: t for n, t in read_tensors(folder).items() if n.rsplit(".", 1)[1] in PARTS}

    def config(self, folder):
        with open(os.path.join(folder, "config.json")) as f:
            return json.load(f)["quantization_config"]

    def logits(self, folder, *args):
        line = json.loads(self.ok("run", folder, "the cat", "-n", "4", "--json", *args).splitlines()[-1])
        return line["kv"], line["logits_hash"]

    def test_scales_of_a_layer_by_an_independent_reference(self):
        recipe = self.write("r.txt", "* = W8A16\n*.self_attn.* = keep\n")
        cells = [c for s in IDS for c in keys_and_values(MODEL, s)]
        largest = [[max(abs(x) for c in cells for x in c[part][head]) for head in range(2)] for part in range(2)]
        for kind, strategy, shape in (("fp8", "tensor", [1]), ("fp8:head", "attn_head", [2, 1, 1])):
            out, line = self.quantize(kind.replace(":", ""), "--recipe", recipe, "--kv", kind)
            scales, said = self.scales(out), self.config(out)["kv_cache_scheme"]
            self.assertEqual(len(scales), 4)
            self.assertEqual((said["num_bits"], said["type"], said["symmetric"], said["dynamic"], said["strategy"]),
                             (8, "float", True, False, strategy))
            self.assertEqual((line["kv_cache"]["strategy"], line["kv_cache"]["observer"]), (strategy, "minmax"))
            for i, part in enumerate(PARTS):
                heads = [max(largest[i])] if kind == "fp8" else largest[i]
                want = b"".join(rounded_up(a / 448) for a in heads)
                self.assertEqual(scales["model.layers.0.self_attn." + part], ("F32", shape, want))
                stored = list(struct.unpack("<%df" % len(heads), want))
                self.assertEqual(line["kv_cache"][part + "s"][0], stored[0] if kind == "fp8" else stored)
            # What is exact in BF16 and in F16 is the same to every reader.
            for _, _, raw in scales.values():
                for s in struct.unpack("<%df" % (len(raw) // 4), raw):
                    self.assertEqual(struct.unpack("<e", struct.pack("<e", s))[0], s)
            summary = lib.json_lines(self.ok("inspect", out, "--json"))[-1]
            for part in PARTS:
                found = [x for n, (_, _, raw) in scales.items() if n.endswith(part)
                         for x in struct.unpack("<%df" % (len(raw) // 4), raw)]
                self.assertEqual(summary[part + "s"], [min(found), max(found)])
            self.assertEqual((summary["kv"], summary["parameters"]), ("fp8", MODEL.n_parameters()))
        self.assertIn("kv cache       fp8, static scales: keys ", self.ok("inspect", out))
        self.assertIn("self_attn.k_scale", self.ok("inspect", out))

    def test_same_bytes_everywhere_and_used_by_all_that_runs(self):
        common = ("--scheme", "W4A16:g32", "--method", "gptq", "--kv", "fp8:head")
        for left in ("lock", "x0-even.bin", "x0-odd.bin"):  # by a run that was killed while it looked for scales
            self.write("b.nibble-kv/" + left, "left over" * 7)
        out, line = self.quantize("a", *common, "--threads", "1")
        other, same = self.quantize("b", *common, "--threads", "3", "--isa", "scalar")
        self.assertEqual(line["sha256"], same["sha256"])
        self.assertEqual(sorted(os.listdir(self.folder)), ["a", "b", "hf", "t.jsonl"])  # no folder is left
        kv, want = self.logits(out)
        self.assertEqual(kv, "fp8")  # what the model says
        for args in (["--kv", "fp8", "--isa", "scalar"], ["--kv", "fp8_e4m3", "--threads", "3"]):
            self.assertEqual(self.logits(out, *args)[1], want)
        dynamic = self.logits(out, "--kv", "fp8:dynamic")
        self.assertEqual(dynamic[0], "fp8:dynamic")
        self.assertEqual(len({want, dynamic[1], self.logits(out, "--kv", "f16")[1]}), 3)
        # The engine, with pages, batches and preemption, answers as the plain passes do.
        lines = lib.json_lines(self.ok("verify", out, "--kv", "fp8", "--compute", "f", "-n", "40", "--json"))
        static = lines[-1]["hashes"][0]["logits_hash"]
        change(out, lambda n, *t: None if n in self.scales(out) else t)
        with open(os.path.join(out, "config.json")) as f:
            config = json.load(f)
        config["quantization_config"]["kv_cache_scheme"] = None
        with open(os.path.join(out, "config.json"), "w") as f:
            json.dump(config, f)
        self.assertEqual(self.logits(out), ("f16", self.logits(other, "--kv", "f16")[1]))
        self.assertEqual(self.logits(out, "--kv", "fp8")[1], dynamic[1])  # there are none now
        lines = lib.json_lines(self.ok("verify", out, "--kv", "fp8", "--compute", "f", "-n", "40", "--json"))
        self.assertNotEqual(lines[-1]["hashes"][0]["logits_hash"], static)

    def test_plan_observers_and_what_a_conversion_keeps(self):
        common = ["--scheme", "W8A8:static", "--kv", "fp8"]
        line = json.loads(self.ok("quantize", self.model, "--dry-run", *self.calib, "--json", *common))
        self.assertEqual([t["how"] for t in line["tensors"] if t["name"].endswith("_scale")], ["make"] * 4)
        self.assertEqual(line["n_params"], MODEL.n_parameters())
        out, found = self.quantize("minmax", *common)
        self.assertEqual(line["bytes"], found["bytes"])
        narrow, _ = self.quantize("narrow", *common, "--observer", "percentile=90")
        for name, (_, _, raw) in self.scales(out).items():
            self.assertLess(struct.unpack("<f", self.scales(narrow)[name][2]), struct.unpack("<f", raw))
        again = self.path("again")
        self.ok("convert", out, "-o", again)
        self.assertEqual(read_tensors(again), read_tensors(out))
        self.assertEqual(self.config(again), self.config(out))
        floats = self.path("floats")  # a folder with scales of the cache and nothing else that is quantized
        self.ok("convert", out, "-o", floats, "--dtype", "f32")
        said = self.config(floats)
        self.assertEqual((said["config_groups"], said["format"]), ({}, "dense"))
        self.assertEqual(self.scales(floats), self.scales(out))
        self.assertEqual(self.logits(floats)[0], "fp8")
        for args, words in ((["convert", floats, "-o", self.path("x.gguf")], "has no place for them"),
                            (["quantize", out, "-o", self.path("x"), "--scheme", "W4A16:g32"],
                             "they are not of the new weights; --kv fp8 finds some that are")):
            self.assertIn(words, self.ok(*args))

    def test_what_is_refused(self):
        out = self.path("no")
        common = ["quantize", self.model, "--kv", "fp8"]
        for args, words in (
                (["-o", out, "--scheme", "W8A16"], "--kv fp8: scales of the KV cache are chosen from a text"),
                (["-o", out + ".gguf", "--scheme", "Q8_0", *self.calib], "a GGUF has no place for scales of the KV"),
                (["-o", out, "--scheme", "W4A16:g32", "--to", "gptq", *self.calib], "GPTQ has no place"),
                (["-o", out, "--scheme", "W4A16:g32", "--to", "awq", *self.calib], "AWQ has no place"),
        ):
            self.assertIn(words, self.fails(2, *common, *args))
        for scheme, layout in (("NF4:g32", "by bitsandbytes"), ("W4A16:g32,zero=float", "by HQQ")):
            self.assertIn(layout, self.fails(1, *common, "-o", out, "--scheme", scheme, *self.calib))
        self.assertIn("needs about", self.fails(4, *common, "-o", out, "--scheme", "W8A16", "--memory", "20M",
                                                *self.calib))
        self.assertIn("fp8:head", self.fails(2, "quantize", self.model, "--kv", "int8", "-o", out))
        self.assertEqual(sorted(os.listdir(self.folder)), ["hf", "t.jsonl"])
        (line,) = lib.json_lines(self.ok(*common, "-o", out, "--scheme", "W8A16", *self.calib, "--json"))
        change(out, lambda n, *t: None if n == "model.layers.1.self_attn.v_scale" else t)
        self.assertIn("tensor 'model.layers.1.self_attn.v_scale' is missing", self.fails(1, "run", out, "a"))
        self.assertIn("tensor 'model.layers.1.self_attn.v_scale' is missing", self.fails(1, "inspect", out))


if __name__ == "__main__":
    lib.main()
