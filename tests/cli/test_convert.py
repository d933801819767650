"""nibble convert: the same model in another container; what changes is said, the rest is equal."""

import json
import os
import struct

import lib

MODEL = lib.TinyModel()


def sixteen_bits(model):
    """The model with norms that BF16 holds, as trained models have them."""
    for name, (shape, values) in model.tensors.items():
        if len(shape) == 1:
            model.tensors[name] = (shape, [round(v * 64) / 64 for v in values])
    return model


def read_safetensors(folder):
    """{name: (dtype, shape, bytes)} of all files of a folder."""
    out = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, name), "rb") as f:
            raw = f.read()
        n = struct.unpack("<Q", raw[:8])[0]
        for key, info in json.loads(raw[8:8 + n]).items():
            if key != "__metadata__":
                begin, end = info["data_offsets"]
                out[key] = (info["dtype"], info["shape"], raw[8 + n + begin:8 + n + end])
    return out


def read_gguf(path):
    """({key: value}, {name: (type, dims, bytes)}) of a GGUF file."""
    with open(path, "rb") as f:
        raw = f.read()
    at = [24]

    def take(fmt):
        size = struct.calcsize("<" + fmt)
        values = struct.unpack("<" + fmt, raw[at[0]:at[0] + size])
        at[0] += size
        return values[0]

    def text():
        n = take("Q")
        at[0] += n
        return raw[at[0] - n:at[0]].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            elem, n = take("I"), take("Q")
            return [value(elem) for _ in range(n)]
        return take({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q",
                     11: "q", 12: "d"}[kind])

    version, n_tensors, n_kv = struct.unpack("<IQQ", raw[4:24])
    assert raw[:4] == b"GGUF" and version == 3
    keys = {}
    for _ in range(n_kv):
        key = text()
        keys[key] = value(take("I"))
    infos = []
    for _ in range(n_tensors):
        name = text()
        dims = tuple(take("Q") for _ in range(take("I")))
        infos.append((name, dims, take("I"), take("Q")))
    start = (at[0] + 31) // 32 * 32
    sizes = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2)}
    tensors = {}
    for name, dims, kind, offset in infos:
        n = 1
        for d in dims:
            n *= d
        block, size = sizes[kind]
        tensors[name] = (kind, dims, raw[start + offset:start + offset + n // block * size])
    return keys, tensors


def words_of(entry):
    """Rows of 32-bit words."""
    dtype, (n_rows, n_cols), raw = entry
    assert dtype == "I32", dtype
    words = struct.unpack("<%dI" % (n_rows * n_cols), raw)
    return [words[r * n_cols:(r + 1) * n_cols] for r in range(n_rows)]


def fields(words, bits):
    """The codes of a string of words."""
    string = sum(w << 32 * i for i, w in enumerate(words))
    return [string >> bits * i & (1 << bits) - 1 for i in range(len(words) * 32 // bits)]


def nibbles_of_awq(words):
    out = []
    for w in words:
        out += [w >> 4 * i & 15 for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    return out


def values_of(tensors, module, config):
    """The weights of a module in the layouts of GPTQ and AWQ, as the layouts are documented:
    rows of outputs."""
    codes, zeros = words_of(tensors[module + ".qweight"]), words_of(tensors[module + ".qzeros"])
    if config["quant_method"] == "gptq":
        bits = config["bits"]
        by_output = [fields(column, bits) for column in zip(*codes)]
        zeros = [fields(row, bits) for row in zeros]
        if config["checkpoint_format"] == "gptq":
            zeros = [[z + 1 for z in row] for row in zeros]
        group = struct.unpack("<%di" % len(by_output[0]), tensors[module + ".g_idx"][2])
    else:
        by_output = list(zip(*[nibbles_of_awq(row) for row in codes]))
        zeros = [nibbles_of_awq(row) for row in zeros]
        size = config["group_size"] if config["group_size"] > 0 else len(by_output[0])
        group = [k // size for k in range(len(by_output[0]))]
    dtype, (n_groups, n_rows), raw = tensors[module + ".scales"]
    assert dtype == "F16", dtype
    scales = struct.unpack("<%de" % (n_groups * n_rows), raw)
    return [[scales[g * n_rows + n] * (q - zeros[g][n]) for q, g in zip(row, group)]
            for n, row in enumerate(by_output)]


class Convert(lib.Case):
    def convert(self, *args):
        (line,) = lib.json_lines(self.ok("convert", *args, "--json"))
        return line

    def formats(self, path):
        *tensors, _ = lib.json_lines(self.ok("inspect", path, "--json"))
        return {t["name"]: t["format"] for t in tensors}

    def load(self, *names):
        with open(self.path(*names)) as f:
            return json.load(f)

    # ---- without loss ----

    def test_floats_there_and_back(self):
        model = sixteen_bits(lib.TinyModel())
        for fmt in ("bf16", "f16", "f32"):
            a = lib.write_hf(self.path(fmt), model, fmt)
            b, c = self.path(fmt + ".gguf"), self.path(fmt + "-back")
            line = self.convert(a, "-o", b)
            self.assertEqual((line["n_rounded"], line["n_quantized"], line["notes"]), (0, 0, []))
            self.assertEqual(line["bytes"], os.path.getsize(b))
            # independent of nibble's reader: the interleaved rows, the types, the names
            want = lib.gguf_tensors(model, fmt)
            got = read_gguf(b)[1]
            self.assertEqual(set(got), {t[0] for t in want})
            for name, dims, kind, raw in want:
                self.assertEqual(got[name], (kind, dims, raw), name)
            line = self.convert(b, "-o", c)
            self.assertEqual(line["n_rounded"], 0)
            self.assertEqual(read_safetensors(a), read_safetensors(c))

    def test_codes_there_and_back(self):
        model = lib.TinyModel(tied=False)
        for fmt, codes in (("q4_0", "int4"), ("q8_0", "int8")):
            a, b, c = (self.path(fmt + end) for end in (".gguf", "", "-back.gguf"))
            lib.write_gguf(a, model, fmt, "f16")
            line = self.convert(a, "-o", b, "--dtype", "keep")
            self.assertEqual((line["n_rounded"], line["n_quantized"]), (0, 0))
            kept = self.formats(b)
            self.assertEqual(kept["lm_head.weight"], codes)
            self.assertEqual(kept["model.layers.0.mlp.up_proj.weight"], codes)
            config = self.load(fmt, "config.json")
            (group,) = config["quantization_config"]["config_groups"].values()
            self.assertEqual((group["weights"]["group_size"], config["torch_dtype"]),
                             (32, "float16"))
            line = self.convert(b, "-o", c)
            self.assertEqual((line["n_rounded"], line["n_quantized"]), (0, 0))
            self.assertEqual(read_gguf(a)[1], read_gguf(c)[1])

    def test_gguf_to_gguf_keeps_every_key(self):
        keys = lib.gguf_keys(MODEL)
        keys.update({"general.file_type": 3, "general.quantization_version": 2,
                     "some.list": [1.5, -2.5], "some.texts": ["a", "", "ü"], "some.flag": True})
        source = self.write("m.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL, "q4_1")))
        self.convert(source, "-o", self.path("n.gguf"))
        got, tensors = read_gguf(self.path("n.gguf"))
        want = read_gguf(source)
        self.assertEqual(got, want[0])
        self.assertEqual(tensors, want[1])
        self.ok("quantize", source, "-o", self.path("q.gguf"), "--scheme", "Q8_0")
        got, _ = read_gguf(self.path("q.gguf"))
        self.assertEqual(got.pop("general.file_type"), 7)
        self.assertEqual(got, {k: v for k, v in want[0].items() if k != "general.file_type"})
        self.convert(source, "-o", self.path("f.gguf"), "--dtype", "bf16")
        got, _ = read_gguf(self.path("f.gguf"))
        self.assertEqual(got.pop("general.file_type"), 32)
        self.assertNotIn("general.quantization_version", got)

    def test_folder_to_folder(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16", shards=3)
        self.convert(source, "-o", self.path("o"))
        self.assertEqual(read_safetensors(source), read_safetensors(self.path("o")))
        self.assertEqual(self.load("hf", "config.json"), self.load("o", "config.json"))
        self.assertNotIn("model.safetensors.index.json", os.listdir(self.path("o")))
        self.ok("quantize", source, "-o", self.path("q"), "--scheme", "W4A8:g32,asym")
        self.convert(self.path("q"), "-o", self.path("r"))
        self.assertEqual(read_safetensors(self.path("q")), read_safetensors(self.path("r")))
        self.assertEqual(self.load("q", "config.json"), self.load("r", "config.json"))
        # and back to floats: the config says nothing of codes any more
        self.convert(self.path("q"), "-o", self.path("f"), "--dtype", "f32")
        config = self.load("f", "config.json")
        self.assertNotIn("quantization_config", config)
        self.assertEqual(config["torch_dtype"], "float32")

    def test_more_heads_and_norms_and_biases(self):
        for arch in ("qwen2", "qwen3", "mistral"):
            model = sixteen_bits(lib.TinyModel(arch=arch))
            kv = model.n_kv_heads * model.head_dim
            for i in range(model.n_layers):
                p = "model.layers.%d.self_attn." % i
                if arch == "qwen2":
                    for name, n in (("q", model.d_model), ("k", kv), ("v", kv)):
                        model.tensors[p + name + "_proj.bias"] = ((n,), [k / 8 for k in range(n)])
                if arch == "qwen3":
                    for name in ("q_norm", "k_norm"):
                        values = [1 + k / 64 for k in range(model.head_dim)]
                        model.tensors[p + name + ".weight"] = ((model.head_dim,), values)
            source = lib.write_hf(self.path(arch), model, "bf16")
            self.convert(source, "-o", self.path(arch + ".gguf"))
            keys, _ = read_gguf(self.path(arch + ".gguf"))
            self.assertEqual(keys["general.architecture"], {"mistral": "llama"}.get(arch, arch))
            self.convert(self.path(arch + ".gguf"), "-o", self.path(arch + "-back"))
            self.assertEqual(read_safetensors(source), read_safetensors(self.path(arch + "-back")))

    # ---- GPTQ and AWQ ----

    def check_values(self, folder):
        """What nibble reads is what the layout says, by a reader of its own."""
        config = self.load(folder, "config.json")
        self.assertEqual(config["torch_dtype"], "float16")
        tensors = read_safetensors(self.path(folder))
        self.convert(self.path(folder), "-o", self.path("values"), "--dtype", "f32", "--force")
        got = read_safetensors(self.path("values"))
        modules = [name[:-8] for name in tensors if name.endswith(".qweight")]
        self.assertEqual(len(modules), 14)
        for module in modules:
            want = values_of(tensors, module, config["quantization_config"])
            dtype, shape, raw = got[module + ".weight"]
            self.assertEqual((dtype, shape), ("F32", [len(want), len(want[0])]))
            self.assertEqual(list(struct.unpack("<%df" % (len(raw) // 4), raw)),
                             [v for row in want for v in row], module)
        return config["quantization_config"]

    def test_quantizing_into_other_layouts(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        cases = [("W4A16:g32", "gptq", 4, 32, True), ("W3A16", "gptq", 3, 64, True),
                 ("W2A16:g32,asym", "gptq_v2", 2, 32, False), ("W8A16", "gptq", 8, -1, True),
                 ("W4A16:g64,asym", "awq", 4, 64, False), ("W4A16:channel", "awq", 4, -1, True)]
        for i, (scheme, to, bits, group, sym) in enumerate(cases):
            folder = "q%d" % i
            (line,) = lib.json_lines(self.ok("quantize", source, "-o", self.path(folder), "--scheme",
                                             scheme, "--to", to, "--json"))
            self.assertEqual(line["container"], to)
            q = self.check_values(folder)
            self.assertEqual((q["bits"], q["group_size"], q.get("sym", False)), (bits, group, sym))
            if to != "awq":
                self.assertEqual((q["checkpoint_format"], q["desc_act"]), (to, False))
                self.assertEqual(self.load(folder, "quantize_config.json"), q)
            else:
                self.assertEqual((q["version"], q["zero_point"]), ("gemm", True))
            tensors = lib.json_lines(self.ok("inspect", self.path(folder), "--json"))[:-1]
            self.assertEqual(line["weight_bytes"], sum(t["bytes"] for t in tensors))

    def test_layouts_there_and_back(self):
        source = lib.write_hf(self.path("hf"), MODEL, "f16")
        self.ok("quantize", source, "-o", self.path("ct"), "--scheme", "W4A16:g32")
        self.ok("quantize", source, "-o", self.path("ct-asym"), "--scheme", "W4A16:g32,asym")
        for first, ways in (("ct", ("gptq", "awq", "gptq_v2", "hf")),
                            ("ct-asym", ("gptq_v2", "awq", "hf"))):
            at = first
            for to in ways:
                line = self.convert(self.path(at), "-o", self.path(first + to), "--to", to)
                self.assertEqual((line["n_rounded"], line["n_quantized"], line["container"]),
                                 (0, 0, to))
                at = first + to
                if to != "hf":
                    self.check_values(at)
            self.assertEqual(read_safetensors(self.path(first)), read_safetensors(self.path(at)))
            self.assertEqual(self.load(first, "config.json"), self.load(at, "config.json"))
        # the same logits, whatever the layout
        hashes = {json.loads(self.ok("run", self.path(f), "cat", "-n", "3", "--json").splitlines()[-1])
                  ["logits_hash"] for f in ("ct", "ctgptq", "ctawq", "ctgptq_v2")}
        self.assertEqual(len(hashes), 1)

    def test_blocks_and_layouts(self):
        source = lib.write_gguf(self.path("m.gguf"), MODEL, "q4_0", "f16")
        self.convert(source, "-o", self.path("g"), "--to", "gptq")
        self.check_values("g")
        self.convert(self.path("g"), "-o", self.path("back.gguf"))
        got, want = read_gguf(self.path("back.gguf"))[1], read_gguf(source)[1]
        for name in want:
            if name.endswith("proj.weight") or ".attn_" in name or ".ffn_" in name:
                self.assertEqual(got[name], want[name], name)

    def test_scales_that_f16_cannot_hold(self):
        model = lib.TinyModel()
        shape, values = model.tensors["model.layers.0.mlp.up_proj.weight"]
        values[64 + 2] = 1e6
        source = lib.write_hf(self.path("hf"), model, "bf16")
        self.ok("quantize", source, "-o", self.path("q"), "--scheme", "W4A16:g32")
        line = self.fails(1, "convert", self.path("q"), "-o", self.path("g"), "--to", "gptq")
        self.assertIn("mlp.up_proj.weight': row 1 has a scale that int4 cannot hold exactly", line)
        line = self.convert(self.path("q"), "-o", self.path("g"), "--to", "gptq", "--requantize")
        self.assertTrue(line["rms_error"] > 0)

    def test_what_the_layouts_have_no_words_for(self):
        source = lib.write_hf(self.path("hf"), MODEL, "f16")
        for scheme, to, part in (("W4A16:asym", "gptq", "--to gptq_v2"),
                                 ("W3A16", "awq", "codes of 4 bits"),
                                 ("W8A8", "gptq", "quantized activations"),
                                 ("W4A8", "awq", "quantized activations"),
                                 ("Q4_0", "gptq", "a Hugging Face folder")):
            line = self.fails(2, "quantize", source, "-o", self.path("o"), "--scheme", scheme,
                              "--to", to)
            self.assertIn(part, line)
        line = self.fails(1, "convert", source, "-o", self.path("o"), "--to", "awq")
        self.assertIn("no weight is in codes that awq can hold", line)
        self.ok("quantize", source, "-o", self.path("q"), "--scheme", "W8A8")
        line = self.fails(1, "convert", self.path("q"), "-o", self.path("o"), "--to", "gptq")
        self.assertIn("activations of 8 bits", line)
        # asymmetric codes into version 1: only while no zero point is 0
        model = lib.TinyModel()
        shape, values = model.tensors["model.layers.0.mlp.up_proj.weight"]
        values[64:128] = [abs(v) + 0.01 for v in values[64:128]]
        lib.write_hf(self.path("one-sided"), model, "f16")
        self.ok("quantize", self.path("one-sided"), "-o", self.path("a"), "--scheme",
                "W4A16:g32,asym")
        line = self.fails(1, "convert", self.path("a"), "-o", self.path("o"), "--to", "gptq")
        self.assertIn("mlp.up_proj.weight': row 1 has a zero point of 0, for which GPTQ version 1 "
                      "has no place", line)
        self.convert(self.path("a"), "-o", self.path("v2"), "--to", "gptq_v2")
        self.check_values("v2")
        self.assertNotIn("o", os.listdir(self.folder))

    def test_columns_in_an_order_of_their_own(self):
        source = lib.write_hf(self.path("hf"), MODEL, "f16")
        self.ok("quantize", source, "-o", self.path("g"), "--scheme", "W4A16:g32", "--to", "gptq")
        tensors = read_safetensors(self.path("g"))
        for name, (dtype, shape, raw) in list(tensors.items()):
            if name.endswith(".g_idx"):
                group = list(struct.unpack("<%di" % shape[0], raw))
                tensors[name] = (dtype, shape, struct.pack("<%di" % shape[0],
                                                           *(group[::2] + group[1::2])))
        config = self.load("g", "config.json")
        config["quantization_config"]["desc_act"] = True
        self.write("g/config.json", json.dumps(config))
        self.write("g/model.safetensors", lib.safetensors_bytes(tensors))
        self.check_values("g")
        self.assertEqual(self.formats(self.path("g"))["model.layers.0.mlp.up_proj.weight"], "f32")
        self.ok("run", self.path("g"), "cat", "-n", "2")
        for to in ("hf", "gptq"):
            line = self.fails(1, "convert", self.path("g"), "-o", self.path("o"), "--to", to)
            self.assertIn("(desc_act)", line)

    # ---- the other way round: what it loses is said ----

    def test_blocks_become_floats(self):
        for fmt in ("q4_0", "q4_1", "q8_0"):
            source = lib.write_gguf(self.path(fmt + ".gguf"), MODEL, fmt)
            line = self.convert(source, "-o", self.path(fmt))
            self.assertEqual(line["n_rounded"], 15)
            self.assertTrue(any("not lossless" in n for n in line["notes"]), line["notes"])
            self.assertTrue(0 < line["rounding_rms_error"] < 2 ** -8)
            self.assertTrue(0 < line["rounding_max_error"] < 0.01)
            words = self.ok("convert", source, "-o", self.path(fmt), "--force")
            self.assertRegex(words, "rounded to other floats: rms error .*largest ")
            # binary32 holds them as they are
            line = self.convert(source, "-o", self.path("f32"), "--dtype", "f32", "--force")
            self.assertEqual((line["n_rounded"], line["rounding_max_error"]), (0, 0))
            self.assertEqual(set(self.formats(self.path("f32")).values()), {"f32"})

    def test_what_a_folder_cannot_keep(self):
        source = lib.write_gguf(self.path("m.gguf"), MODEL, "q4_1")
        line = self.fails(1, "convert", source, "-o", self.path("o"), "--dtype", "keep")
        for part in ("q_proj", "q4_1", "--dtype"):
            self.assertIn(part, line)
        self.assertEqual(os.listdir(self.folder), ["m.gguf"])

    def test_what_a_gguf_cannot_keep(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.ok("quantize", source, "-o", self.path("q"), "--scheme", "W4A16:g32,asym")
        line = self.fails(1, "convert", self.path("q"), "-o", self.path("o.gguf"))
        self.assertIn("--requantize", line)
        line = self.convert(self.path("q"), "-o", self.path("o.gguf"), "--requantize")
        self.assertEqual(line["n_quantized"], 14)
        self.assertTrue(0 < line["rms_error"] < 0.2)

    def test_f16_overflow_is_refused(self):
        model = lib.TinyModel()
        shape, values = model.tensors["model.layers.0.mlp.up_proj.weight"]
        values[64 + 2] = 1e6
        source = lib.write_hf(self.path("hf"), model, "bf16")
        line = self.fails(1, "convert", source, "-o", self.path("o"), "--dtype", "f16")
        self.assertIn("mlp.up_proj.weight': 999424 at [1, 2] does not fit into f16", line)
        self.assertEqual(os.listdir(self.folder), ["hf"])

    # ---- what goes around the tensors ----

    def test_the_files_of_a_folder_from_a_gguf(self):
        self.convert(lib.write_gguf(self.path("m.gguf"), MODEL, "bf16"), "-o", self.path("o"))
        self.assertEqual(sorted(os.listdir(self.path("o"))),
                         ["chat_template.jinja", "config.json", "generation_config.json",
                          "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
        config = self.load("o", "config.json")
        want = lib.hf_config(MODEL, "bf16")
        del want["pad_token_id"]  # a folder says it in generation_config.json
        self.assertEqual(config, want)
        self.assertEqual(self.load("o", "generation_config.json"),
                         {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
        with open(self.path("o", "chat_template.jinja")) as f:
            self.assertEqual(f.read(), lib.CHAT_TEMPLATE)
        self.assertEqual(self.load("o", "tokenizer_config.json")["chat_template"],
                         lib.CHAT_TEMPLATE)

    def test_tokens_are_the_same_on_both_sides(self):
        text = "The cat in the hat: 1234 \u00fc\n  and so on <|im_end|>"
        a = lib.write_hf(self.path("hf"), MODEL, "bf16")
        paths = [a, self.path("b.gguf"), self.path("c"), self.path("d.gguf")]
        for source, output in zip(paths, paths[1:]):
            self.convert(source, "-o", output)
        ids = {self.ok("tokenize", path, "--text", text, *more)
               for path in paths for more in ([],)}
        self.assertEqual(len(ids), 1)
        ids = {self.ok("tokenize", path, "--text", text, "--special") for path in paths}
        self.assertEqual(len(ids), 1)

    def test_the_keys_of_a_gguf_from_a_folder(self):
        self.convert(lib.write_hf(self.path("my-model"), MODEL, "bf16"), "-o", self.path("o.gguf"))
        keys, _ = read_gguf(self.path("o.gguf"))
        want = lib.gguf_keys(MODEL)
        for key in want:
            if key in ("general.name", "tokenizer.ggml.unknown_token_id"):
                continue
            got = keys[key]
            if isinstance(want[key], float):
                self.assertAlmostEqual(got, want[key], delta=abs(want[key]) * 1e-7)
            else:
                self.assertEqual(got, want[key], key)
        self.assertEqual(keys["general.name"], "my-model")
        self.assertEqual(keys["general.file_type"], 32)

    def test_llama3_rope_scaling(self):
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        model = sixteen_bits(lib.TinyModel(d_model=128, n_heads=1, n_kv_heads=1))
        model.rope_theta = 500000.0
        files = lib.hf_files(model, "bf16")
        config = json.loads(files["config.json"])
        config["rope_scaling"] = scaling
        files["config.json"] = json.dumps(config).encode()
        for name, content in files.items():
            self.write("hf/" + name, content)
        self.convert(self.path("hf"), "-o", self.path("m.gguf"))
        keys, tensors = read_gguf(self.path("m.gguf"))
        kind, dims, raw = tensors["rope_freqs.weight"]
        self.assertEqual((kind, dims), (0, (64,)))
        factors = struct.unpack("<64f", raw)
        self.assertEqual(factors[28], 1)
        self.assertAlmostEqual(factors[29], 1.207483871283662, places=6)
        self.assertAlmostEqual(factors[63], 8, places=5)
        self.convert(self.path("m.gguf"), "-o", self.path("back"))
        self.assertEqual(self.load("back", "config.json")["rope_scaling"], scaling)
        self.assertEqual(read_safetensors(self.path("hf")), read_safetensors(self.path("back")))
        # factors that nobody published have no place in a config.json
        with open(self.path("m.gguf"), "rb") as f:
            data = f.read()
        at = data.index(raw)
        self.write("odd.gguf", data[:at] + struct.pack("<f", 1.5) + data[at + 4:])
        line = self.fails(1, "convert", self.path("odd.gguf"), "-o", self.path("odd"))
        self.assertIn("rope_freqs.weight", line)
        self.convert(self.path("odd.gguf"), "-o", self.path("odd2.gguf"))

    def test_what_the_other_side_has_no_words_for(self):
        files = lib.hf_files(MODEL, "bf16")
        config = json.loads(files["config.json"])
        config["rope_scaling"] = {"rope_type": "dynamic", "factor": 2.0}
        files["config.json"] = json.dumps(config).encode()
        for name, content in files.items():
            self.write("hf/" + name, content)
        line = self.fails(1, "convert", self.path("hf"), "-o", self.path("m.gguf"))
        self.assertIn("'dynamic'", line)
        self.convert(self.path("hf"), "-o", self.path("o"))  # a folder has

    def test_only_known_files_are_copied(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.write("hf/modeling_evil.py", "import os")
        self.write("hf/pytorch_model.bin", "x")
        self.write("hf/LICENSE", "terms")
        self.write("hf/special_tokens_map.json", "{}")
        self.convert(source, "-o", self.path("o"))
        names = set(os.listdir(self.path("o")))
        self.assertLessEqual({"LICENSE", "special_tokens_map.json", "tokenizer.json"}, names)
        self.assertFalse({"modeling_evil.py", "pytorch_model.bin"} & names)
        os.remove(self.path("hf", "LICENSE"))
        os.mkfifo(self.path("hf", "LICENSE"))
        line = self.fails(1, "convert", source, "-o", self.path("p"), timeout=20)
        self.assertIn("LICENSE", line)

    def test_odd_tensors(self):
        files = lib.hf_files(MODEL, "bf16")
        tensors = {n: ("BF16", shape, lib.bf16_bytes(v)) for n, (shape, v) in MODEL.tensors.items()}
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (8,), bytes(32))
        tensors["lm_head.weight"] = ("BF16", (MODEL.vocab_size, 64), bytes(MODEL.vocab_size * 128))
        tensors["extra.scale"] = ("F32", (), struct.pack("<f", 2))
        tensors["extra.table"] = ("F16", (1, 3), bytes(6))
        files["model.safetensors"] = lib.safetensors_bytes(tensors)
        for name, content in files.items():
            self.write("hf/" + name, content)
        line = self.convert(self.path("hf"), "-o", self.path("m.gguf"))
        self.assertTrue(any("lm_head.weight is left out" in n for n in line["notes"]))
        _, got = read_gguf(self.path("m.gguf"))
        self.assertEqual(got["extra.scale"], (0, (1,), struct.pack("<f", 2)))
        self.assertEqual(got["extra.table"], (1, (3, 1), bytes(6)))
        self.assertNotIn("output.weight", got)
        self.assertFalse([n for n in got if "inv_freq" in n])
        self.convert(self.path("hf"), "-o", self.path("o"))
        self.assertEqual(set(read_safetensors(self.path("o"))), set(tensors))
        self.ok("quantize", self.path("hf"), "-o", self.path("q"), "--scheme", "W4A16")

    def test_nan_is_kept_only_when_asked_for(self):
        files = lib.hf_files(MODEL, "bf16")
        raw = bytearray(files["model.safetensors"])
        raw[-2:] = b"\xc0\x7f"
        files["model.safetensors"] = bytes(raw)
        for name, content in files.items():
            self.write("hf/" + name, content)
        source = self.path("hf")
        self.assertIn("--nonfinite", self.fails(1, "convert", source, "-o", self.path("o.gguf")))
        self.convert(source, "-o", self.path("o"), "--nonfinite", "keep")
        self.assertEqual(read_safetensors(source), read_safetensors(self.path("o")))
        self.assertEqual(self.convert(source, "-o", self.path("z"), "--nonfinite=zero")["zeroed"], 1)

    def test_help_leads_with_an_example(self):
        for verb in ("convert", "quantize"):
            out = self.ok(verb, "--help")
            self.assertIn("nibble %s model" % verb, out)
            self.assertIn("--dry-run", out)


if __name__ == "__main__":
    lib.main()
