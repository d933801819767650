"""nibble inspect: what it lists is what the file holds; bad files are refused in one line."""

import json
import os
import struct

import lib

MODEL = lib.TinyModel(n_layers=1)

# Bits per weight of each format's blocks.
BPW = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5}

TABLE = """\
architecture   llama (gguf)
layers         1
heads          4, kv 2, of 16 dimensions
d_model, d_ff  64, 128
vocabulary     320, one matrix for embedding and output
context        256, rope theta 10000, eps 1e-05

tensor                                          shape      format  bytes     bpw
model.embed_tokens.weight                       [320, 64]  q4_0    11520   4.500
model.layers.0.input_layernorm.weight           [64]       f32       256  32.000
model.layers.0.self_attn.q_proj.weight          [64, 64]   q4_0     2304   4.500
model.layers.0.self_attn.k_proj.weight          [32, 64]   q4_0     1152   4.500
model.layers.0.self_attn.v_proj.weight          [32, 64]   q4_0     1152   4.500
model.layers.0.self_attn.o_proj.weight          [64, 64]   q4_0     2304   4.500
model.layers.0.post_attention_layernorm.weight  [64]       f32       256  32.000
model.layers.0.mlp.gate_proj.weight             [128, 64]  q4_0     4608   4.500
model.layers.0.mlp.up_proj.weight               [128, 64]  q4_0     4608   4.500
model.layers.0.mlp.down_proj.weight             [64, 128]  q4_0     4608   4.500
model.norm.weight                               [64]       f32       256  32.000

11 tensors, 57536 parameters (57.5 k), 33024 bytes (33.0 kB), 4.592 bits per weight
memory at 100 tokens: weights 33.0 kB + kv cache (f16) 12.8 kB = 45.8 kB
"""


class Inspect(lib.Case):
    def gguf(self, fmt="f32"):
        return lib.write_gguf(self.path("m-%s.gguf" % fmt), MODEL, fmt)

    def test_the_table_word_for_word(self):
        out = self.ok("inspect", self.gguf("q4_0"), "--ctx", "100")
        self.assertEqual(out, TABLE)

    def test_every_tensor_of_every_format(self):
        for fmt in lib.FORMATS:
            *tensors, summary = lib.json_lines(self.ok("inspect", self.gguf(fmt), "--json"))
            self.assertEqual([t["name"] for t in tensors], list(MODEL.tensors))
            total = 0
            for t in tensors:
                shape, values = MODEL.tensors[t["name"]]
                kind = "f32" if len(shape) == 1 else fmt
                self.assertEqual((tuple(t["shape"]), t["format"], t["parameters"]),
                                 (shape, kind, len(values)))
                self.assertEqual(t["bytes"] * 8, BPW[kind] * len(values))
                self.assertEqual(t["bpw"], BPW[kind])
                self.assertEqual(t["file_name"], lib.gguf_name(t["name"]))
                self.assertNotIn("nonfinite", t)
                total += t["bytes"]
            self.assertEqual(summary["summary"], True)
            self.assertEqual(summary["parameters"], MODEL.n_parameters())
            self.assertEqual(summary["bytes"], total)
            self.assertEqual(summary["bpw"], 8 * total / MODEL.n_parameters())
            self.assertEqual(summary["file_bytes"], os.path.getsize(self.path("m-%s.gguf" % fmt)))
            self.assertEqual(summary["nonfinite_tensors"], 0)
            self.assertEqual((summary["container"], summary["architecture"]), ("gguf", "llama"))

    def test_a_folder_lists_the_same_as_a_gguf(self):
        for shards in (1, 3):
            folder = lib.write_hf(self.path("hf%d" % shards), MODEL, "f16", shards)
            of_folder = lib.json_lines(self.ok("inspect", folder, "--json"))
            of_gguf = lib.json_lines(self.ok("inspect", self.gguf("f16"), "--json"))
            by_name = {t["name"]: t for t in of_gguf[:-1]}
            for t in of_folder[:-1]:
                other = by_name.pop(t["name"])
                self.assertEqual(t["shape"], other["shape"])
                if len(t["shape"]) == 2:
                    self.assertEqual(t["format"], other["format"])
            self.assertEqual(by_name, {})
            for key in ("architecture", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_model",
                        "d_ff", "vocab_size", "n_ctx", "rope_theta", "rms_eps", "tied_head",
                        "parameters", "kv_bytes"):
                self.assertEqual(of_folder[-1][key], of_gguf[-1][key], key)

    def test_cache_memory_is_the_formula(self):
        path = self.gguf()
        dim = MODEL.head_dim  # int8: codes, keys' padded to a multiple of 4, and two f16 scales
        padded = (dim + 3) // 4 * 4
        # fp8: padded to 16; int4 and int2: to 32 and 64, codes and two f16 for every 32 numbers,
        # and 256 positions of f16 besides
        wide, int4, int2 = ((dim + n - 1) // n * n for n in (16, 32, 64))
        for kv, cell in (("f16", 2 * dim), ("f32", 4 * dim), ("bf16", 2 * dim),
                         ("int8", padded + 2), ("fp8", wide + 2), ("int4", int4 * 5 // 8),
                         ("int4_plain", int4 * 5 // 8), ("int2", int2 * 3 // 8)):
            recent = 256 * 2 * dim if kv[:4] in ("int4", "int2") else 0
            for ctx in (1, 7, 4096):
                s = lib.json_lines(self.ok("inspect", path, "--json", "--kv", kv, "--ctx",
                                           str(ctx)))[-1]
                self.assertEqual(s["kv_bytes"], 2 * MODEL.n_layers * MODEL.n_kv_heads *
                                 (cell * ctx + recent))
                self.assertEqual(s["memory_bytes"], s["bytes"] + s["kv_bytes"])
                self.assertEqual((s["kv"], s["ctx"]), (kv, ctx))
        self.assertEqual(lib.json_lines(self.ok("inspect", path, "--json"))[-1]["ctx"], MODEL.n_ctx)

    def test_nan_and_inf_are_found_and_accepted(self):
        """H45: inspect accepts, and says where."""
        for bad in (float("nan"), float("inf"), float("-inf")):
            model = lib.TinyModel(n_layers=1)
            name = "model.layers.0.mlp.up_proj.weight"
            model.tensors[name][1][5 * 64 + 9] = bad
            for fmt in ("f32", "f16", "bf16"):
                if fmt == "bf16" and bad != bad:
                    continue  # the helper's rounding may turn this NaN into Inf; both are bad
                path = lib.write_gguf(self.path("bad.gguf"), model, fmt)
                *tensors, summary = lib.json_lines(self.ok("inspect", path, "--json"))
                self.assertEqual({t["name"]: t["nonfinite"] for t in tensors if "nonfinite" in t},
                                 {name: [5, 9]})
                self.assertEqual(summary["nonfinite_tensors"], 1)
                out = self.ok("inspect", path)
                self.assertIn("NaN or Inf at [5, 9]", out)
                self.assertIn("tensors with NaN or Inf: 1", out)
                self.assertNotIn("NaN", self.ok("inspect", path, "--nonfinite", "skip"))

    def test_nan_in_a_block_scale(self):
        keys, tensors = lib.gguf_keys(MODEL), lib.gguf_tensors(MODEL, "q8_0")
        for i, (name, dims, type_id, raw) in enumerate(tensors):
            if name == "blk.0.ffn_down.weight":
                block = 3 * (128 // 32) + 2  # row 3, columns 64 to 95
                raw = raw[:block * 34] + struct.pack("<H", 0x7e00) + raw[block * 34 + 2:]
                tensors[i] = (name, dims, type_id, raw)
        path = self.write("bad.gguf", lib.gguf_bytes(keys, tensors))
        found = [t for t in lib.json_lines(self.ok("inspect", path, "--json")) if "nonfinite" in t]
        self.assertEqual([(t["name"], t["nonfinite"]) for t in found],
                         [("model.layers.0.mlp.down_proj.weight", [3, 64])])

    def test_interleaved_rows_are_named_in_hugging_face_order(self):
        """A NaN in row 1 of a GGUF's q is in row 8 (half a head further) of Hugging Face's."""
        model = lib.TinyModel(n_layers=1)
        name = "model.layers.0.self_attn.q_proj.weight"
        model.tensors[name][1][8 * 64] = float("nan")
        path = lib.write_gguf(self.path("q.gguf"), model)
        with open(path, "rb") as f:
            self.assertIn(struct.pack("<f", float("nan")), f.read())
        found = [t for t in lib.json_lines(self.ok("inspect", path, "--json")) if "nonfinite" in t]
        self.assertEqual([(t["name"], t["nonfinite"]) for t in found], [(name, [8, 0])])


class Refused(lib.Case):
    def test_not_a_model(self):
        for name, content in (("empty.gguf", b""), ("one.gguf", b"G"), ("magic.gguf", b"GGUF"),
                              ("text.gguf", b"hello world, this is no model at all"),
                              ("zip.gguf", b"PK\3\4" + b"\0" * 100)):
            path = self.write(name, content)
            self.assertTrue(self.fails(1, "inspect", path).startswith("nibble: %s: " % path))
        self.fails(1, "inspect", self.path("absent.gguf"))
        self.fails(1, "inspect", "/dev/null")
        self.fails(1, "inspect", "/dev/zero")
        self.fails(1, "inspect", self.folder)
        os.mkfifo(self.path("fifo.gguf"))
        self.fails(1, "inspect", self.path("fifo.gguf"))
        os.symlink("loop", self.path("loop"))
        self.fails(1, "inspect", self.path("loop"))

    def test_cut_anywhere(self):
        whole = lib.gguf_bytes(lib.gguf_keys(MODEL), lib.gguf_tensors(MODEL, "q4_0"))
        for n in [len(whole) - 1, len(whole) // 2] + list(range(24, 4000, 331)):
            self.fails(1, "inspect", self.write("cut.gguf", whole[:n]))

    def test_shape_keys_that_make_no_sense(self):
        for key, value in (("llama.block_count", 0), ("llama.attention.head_count", 3),
                           ("llama.attention.head_count_kv", 3), ("llama.embedding_length", 0),
                           ("llama.context_length", 0), ("llama.rope.freq_base", float("nan")),
                           ("llama.attention.layer_norm_rms_epsilon", float("nan")),
                           ("general.architecture", "nonsense")):
            keys = lib.gguf_keys(MODEL)
            keys[key] = value
            path = self.write("bad.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL)))
            with self.subTest(key=key):
                self.fails(1, "inspect", path)
        for key in ("llama.block_count", "llama.attention.head_count", "llama.embedding_length"):
            keys = lib.gguf_keys(MODEL)
            del keys[key]
            path = self.write("bad.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL)))
            self.assertIn(key, self.fails(1, "inspect", path))

    def test_config_that_makes_no_sense(self):
        for key, value in (("hidden_size", "64"), ("hidden_size", 64.0), ("num_hidden_layers", 0),
                           ("num_attention_heads", 2 ** 32 + 4), ("model_type", "nonsense"),
                           ("hidden_act", "nonsense"), ("rope_theta", 0)):
            files = lib.hf_files(MODEL)
            config = json.loads(files["config.json"])
            config[key] = value
            files["config.json"] = json.dumps(config).encode()
            for name, content in files.items():
                self.write("hf/" + name, content)
            with self.subTest(key=key, value=value):
                self.fails(1, "inspect", self.path("hf"))

    def test_paths_with_odd_names_work(self):
        whole = lib.gguf_bytes(lib.gguf_keys(MODEL), lib.gguf_tensors(MODEL, "q4_0"))
        for name in (b"with space.gguf", b"new\nline.gguf", b"n\xffon-utf8.gguf", b"-dash.gguf"):
            path = os.path.join(self.folder.encode(), name)
            with open(path, "wb") as f:
                f.write(whole)
            self.ok("inspect", path)
            summary = json.loads(self.ok("inspect", path, "--json").splitlines()[-1])
            self.assertTrue(summary["path"].endswith(".gguf"))
        self.ok("inspect", "--", "-dash.gguf", cwd=self.folder)
        self.ok("inspect", "./-dash.gguf", cwd=self.folder)
        self.fails(2, "inspect", "-dash.gguf", cwd=self.folder)


if __name__ == "__main__":
    lib.main()
