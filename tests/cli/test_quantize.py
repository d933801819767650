"""nibble quantize: the codes are in the file that was planned, or there is no file."""

import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import time

import lib

MODEL = lib.TinyModel()
LINEARS = [n for n in MODEL.tensors if n.endswith("_proj.weight")]

# scheme: (format, group: columns or "channel", symmetric, activation bits)
FOLDER_SCHEMES = {
    "W8A16": ("int8", "channel", True, None),
    "W8A16:g32": ("int8", 32, True, None),
    "W4A16": ("int4", 64, True, None),
    "W4A16:g32,asym": ("int4", 32, False, None),
    "W4A16:g32,asym,zero=float": ("int4", 32, False, None),
    "W3A16:g64,asym,zero=float": ("int3", 64, False, None),
    "W4A16:channel": ("int4", "channel", True, None),
    "W8A8": ("int8", "channel", True, 8),
    "W4A8:g32": ("int4", 32, True, 8),
    "W8A8:asym": ("int8", "channel", False, 8),
}
KEYS = {"source", "source_container", "output", "container", "scheme", "method", "group_size",
        "n_tensors", "n_quantized", "n_requantized", "n_rounded", "n_params", "source_bytes",
        "bytes", "side_bytes", "weight_bytes", "bpw", "linear_bpw", "memory_bytes", "notes", "seconds"}
RUN_KEYS = KEYS | {"rms_error", "max_error", "rounding_rms_error", "rounding_max_error", "zeroed",
                   "peak_rss_bytes", "sha256"}
DRY_KEYS = KEYS | {"dry_run", "tensors"}


def files_size(path):
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, n)) for n in os.listdir(path)
               if n.endswith(".safetensors"))


def side_size(path):
    if os.path.isfile(path):
        return 0
    return sum(os.path.getsize(os.path.join(path, n)) for n in os.listdir(path)
               if ".safetensors" not in n and "nibble-report" not in n)


class Quantize(lib.Case):
    def sources(self):
        return [lib.write_hf(self.path("hf"), MODEL, "bf16"),
                lib.write_gguf(self.path("m.gguf"), MODEL, "q4_1", "q8_0")]

    def inspect(self, path):
        *tensors, summary = lib.json_lines(self.ok("inspect", path, "--json"))
        return {t["name"]: t for t in tensors}, summary

    def run_json(self, *args):
        (line,) = lib.json_lines(self.ok("quantize", *args, "--json"))
        return line

    def test_folder_schemes(self):
        for source in self.sources():
            for scheme, (fmt, group, symmetric, act) in FOLDER_SCHEMES.items():
                out = self.path("out")
                line = self.run_json(source, "-o", out, "--scheme", scheme, "--force")
                self.assertEqual(set(line), RUN_KEYS)
                self.assertEqual((line["scheme"], line["method"], line["container"]),
                                 (scheme, "rtn", "hf"))
                self.assertEqual(line["group_size"], group)
                self.assertEqual(line["n_quantized"], len(LINEARS))
                self.assertEqual(line["n_requantized"], len(LINEARS) * source.endswith(".gguf"))
                self.assertTrue(0 < line["rms_error"] < 0.25)
                tensors, summary = self.inspect(out)
                self.assertEqual(set(tensors), set(MODEL.tensors))
                self.assertEqual(line["bytes"], files_size(out))
                self.assertEqual(line["side_bytes"], side_size(out))
                self.assertEqual(line["weight_bytes"], summary["bytes"])
                self.assertAlmostEqual(line["bpw"], summary["bpw"])
                self.assertEqual(line["n_params"], MODEL.n_parameters())
                for name, t in tensors.items():
                    if name not in LINEARS:
                        # norms of the GGUF have more bits than BF16, and lose none of them
                        odd = source.endswith(".gguf") and "norm" in name
                        self.assertEqual(t["format"], "f32" if odd else "bf16", name)
                        continue
                    cols = t["shape"][1]
                    self.assertEqual((t["format"], t["group_size"], t["symmetric"],
                                      t["scale_type"], t.get("activation_bits")),
                                     (fmt, cols if group == "channel" else group, symmetric,
                                      "bf16", act), name)

    def test_gguf_schemes(self):
        for source in self.sources():
            for scheme, fmt in (("Q4_0", "q4_0"), ("Q8_0", "q8_0")):
                out = self.path("out.gguf")
                line = self.run_json(source, "-o", out, "--scheme", scheme, "--force")
                self.assertEqual((line["scheme"], line["container"], line["group_size"]),
                                 (scheme, "gguf", None))
                tensors, summary = self.inspect(out)
                self.assertEqual(line["bytes"], os.path.getsize(out))
                self.assertEqual(line["weight_bytes"], summary["bytes"])
                for name, t in tensors.items():
                    want = "f32" if "norm" in name else "q8_0" if "embed" in name else fmt
                    self.assertEqual(t["format"], want, name)
                told = [n for n in line["notes"] if "q6_k" in n]
                self.assertEqual(len(told), scheme == "Q4_0")

    def test_a_dry_run_knows_and_writes_nothing(self):
        for source in self.sources():
            for scheme in list(FOLDER_SCHEMES) + ["Q4_0", "Q8_0"]:
                out = self.path("out.gguf" if scheme[0] == "Q" else "out")
                before = sorted(os.listdir(self.folder))
                dry = self.run_json(source, "-o", out, "--scheme", scheme, "--dry-run")
                self.assertEqual(sorted(os.listdir(self.folder)), before)
                self.assertEqual(set(dry), DRY_KEYS)
                self.assertIs(dry["dry_run"], True)
                done = self.run_json(source, "-o", out, "--scheme", scheme)
                for key in KEYS - {"seconds"}:
                    self.assertEqual(dry[key], done[key], key)
                tensors, _ = self.inspect(out)
                self.assertEqual([t["name"] for t in dry["tensors"]], list(tensors))
                for t in dry["tensors"]:
                    for key in set(t) - {"from", "how"}:
                        self.assertEqual(t[key], tensors[t["name"]][key], (t["name"], key))
                if os.path.isdir(out):
                    for name in os.listdir(out):
                        os.remove(os.path.join(out, name))
                    os.rmdir(out)
                else:
                    os.remove(out)

    def test_a_dry_run_in_words(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        out = self.ok("quantize", source, "--scheme", "W4A8", "--dry-run")
        self.assertIn("group size 64: the largest of 128, 64, 32 that divides every row", out)
        self.assertIn("nothing was written", out)
        rows = [line.split() for line in out.splitlines() if line.startswith("model.")]
        self.assertIn(["model.layers.*.mlp.down_proj.weight", "2", "64", "x", "128", "bf16", "int4",
                       "g64", "quantize", str(2 * (16 + 64 * 64 + 64 * 2 * 2))], rows)
        self.assertEqual(len(rows), 1 + 9 + 1)
        self.assertEqual(os.listdir(self.folder), ["hf"])

    def test_threads_give_the_same_bytes(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        seen = set()
        for threads in "123":
            out = self.path("out" + threads)
            self.ok("quantize", source, "-o", out, "--scheme", "W4A16:asym", "--threads", threads)
            with open(os.path.join(out, "model.safetensors"), "rb") as f:
                seen.add(f.read())
        self.assertEqual(len(seen), 1)

    # ---- what does not fit ----

    def test_groups_that_do_not_divide(self):
        model = lib.TinyModel(d_model=96, d_ff=192, n_layers=1)
        source = lib.write_hf(self.path("hf"), model, "bf16")
        for flags in ([], ["--dry-run"]):
            line = self.fails(1, "quantize", source, "-o", self.path("o"), "--scheme", "W4A16:g64",
                              *flags)
            for part in ("q_proj", "96 columns", "groups of 64", "g32, g16, g8, channel"):
                self.assertIn(part, line)
        self.assertEqual(os.listdir(self.folder), ["hf"])
        line = self.run_json(source, "-o", self.path("o"), "--scheme", "W4A16")
        self.assertEqual(line["group_size"], 32)
        self.assertTrue(any("group size 32" in n for n in line["notes"]), line["notes"])

    def test_no_usual_group_divides(self):
        model = lib.TinyModel(d_model=40, d_ff=80, n_layers=1, n_heads=2, n_kv_heads=1)
        source = lib.write_hf(self.path("hf"), model, "bf16")
        line = self.fails(1, "quantize", source, "-o", self.path("o"), "--scheme", "W4A16")
        self.assertIn("what fits every row: g8, channel", line)
        self.ok("quantize", source, "-o", self.path("o"), "--scheme", "W4A16:g8")
        self.ok("quantize", source, "-o", self.path("c"), "--scheme", "W4A16:channel")
        # Blocks of 32 do not fit either: GGUF files keep such rows as floats, and it is said.
        line = self.run_json(source, "-o", self.path("q.gguf"), "--scheme", "Q4_0")
        self.assertEqual(line["n_quantized"], 0)
        self.assertTrue(any("40 columns" in n and "no whole blocks" in n for n in line["notes"]))

    def test_a_scheme_in_the_wrong_container(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        line = self.fails(2, "quantize", source, "-o", self.path("o.gguf"), "--scheme", "W8A8")
        self.assertIn("W8A8", line)
        self.assertIn("Q8_0", line)
        line = self.fails(2, "quantize", source, "-o", self.path("o"), "--scheme", "Q4_0")
        self.assertIn("W4A16:g32", line)
        # --to overrides the name
        self.ok("quantize", source, "-o", self.path("o"), "--scheme", "Q4_0", "--to", "gguf")
        self.assertTrue(os.path.isfile(self.path("o")))
        self.ok("quantize", source, "-o", self.path("o.gguf"), "--scheme", "W8A8", "--to", "hf")
        self.assertTrue(os.path.isdir(self.path("o.gguf")))
        self.fails(2, "quantize", source, "-o", self.path("x"), "--scheme", "W8A8", "--to", "gguf")

    def test_wrong_usage(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.assertIn("-o OUT", self.fails(2, "quantize", source, "--scheme", "W8A8"))
        self.assertIn("--scheme", self.fails(2, "quantize", source, "-o", self.path("o")))
        out = ["-o", self.path("o")]
        self.assertIn("'W5A16'", self.fails(2, "quantize", source, *out, "-s", "W5A16"))
        self.assertIn("rtn", self.fails(2, "quantize", source, *out, "-s", "W8A8", "-m", "magic"))
        for bad in ("-", ""):
            self.fails(2, "quantize", source, "-o", bad, "--scheme", "W8A8")
        self.assertEqual(os.listdir(self.folder), ["hf"])

    # ---- numbers that are none ----

    def nan_folder(self, name="model.layers.1.mlp.up_proj.weight", at=3 * 64 + 5, value=b"\xc0\x7f"):
        files = lib.hf_files(MODEL, "bf16")
        raw = bytearray(files["model.safetensors"])
        n = struct.unpack("<Q", raw[:8])[0]
        begin, _ = json.loads(raw[8:8 + n])[name]["data_offsets"]
        raw[8 + n + begin + 2 * at:8 + n + begin + 2 * at + 2] = value
        files["model.safetensors"] = bytes(raw)
        for file, content in files.items():
            self.write("nan/" + file, content)
        return self.path("nan")

    def test_nan_is_refused_by_name_and_index(self):
        source = self.nan_folder()
        for scheme, out in (("W4A16", "o"), ("Q8_0", "o.gguf")):
            line = self.fails(1, "quantize", source, "-o", self.path(out), "--scheme", scheme)
            self.assertIn("'model.layers.1.mlp.up_proj.weight'", line)
            self.assertIn("[3, 5]", line)
            self.assertEqual(os.listdir(self.folder), ["nan"])
        # also in a weight that would only be copied
        source = self.nan_folder("model.embed_tokens.weight", 64 * 9 + 1, b"\x80\xff")
        line = self.fails(1, "quantize", source, "-o", self.path("o"), "--scheme", "W8A16")
        self.assertIn("-inf at [9, 1]", line)
        done = self.run_json(source, "-o", self.path("o"), "--scheme", "W8A16", "--nonfinite=zero")
        self.assertEqual(done["zeroed"], 1)
        self.assertEqual(self.inspect(self.path("o"))[1]["nonfinite_tensors"], 0)

    def test_a_nan_scale_in_a_block(self):
        keys = lib.gguf_keys(MODEL)
        tensors = lib.gguf_tensors(MODEL, "q8_0")
        i = [t[0] for t in tensors].index("blk.0.ffn_down.weight")
        name, dims, kind, raw = tensors[i]
        tensors[i] = (name, dims, kind, raw[:34] + b"\x00\x7e" + raw[36:])
        source = self.write("m.gguf", lib.gguf_bytes(keys, tensors))
        line = self.fails(1, "quantize", source, "-o", self.path("o"), "--scheme", "W4A16")
        self.assertIn("'model.layers.0.mlp.down_proj.weight' holds nan at [0, 32]", line)
        for scheme, out in (("W4A16", "o"), ("Q4_0", "o.gguf"), ("Q8_0", "p.gguf")):
            done = self.run_json(source, "-o", self.path(out), "--scheme", scheme,
                                 "--nonfinite", "zero")
            self.assertEqual(done["zeroed"], 32)

    def test_extreme_weights(self):
        for value in (0.0, 3e38, 1e-40, 1.0):
            model = lib.TinyModel(n_layers=1)
            for name in LINEARS:
                if name in model.tensors:
                    shape, values = model.tensors[name]
                    model.tensors[name] = (shape, [value] * len(values))
            source = lib.write_hf(self.path("hf"), model, "f32")
            for scheme in ("W4A16", "W8A8", "W4A16:asym", "W8A16:asym"):
                done = self.run_json(source, "-o", self.path("o"), "--scheme", scheme, "--force")
                self.assertTrue(0 <= done["rms_error"] <= 1 and done["max_error"] < 1e39)
                self.assertEqual(self.inspect(self.path("o"))[1]["nonfinite_tensors"], 0)

    # ---- the input, and what was there before ----

    def test_outputs_never_replace_what_must_stay(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        gguf = lib.write_gguf(self.path("m.gguf"), MODEL)
        os.symlink("hf", self.path("link"))
        os.link(gguf, self.path("hard.gguf"))
        before = snapshot(self.folder)
        cases = [(source, source, "W8A8"), (source, source + "/", "W8A8"),
                 (source, self.path("link"), "W8A8"), (self.path("link"), source, "W8A8"),
                 (gguf, gguf, "Q8_0"), (gguf, self.path("hard.gguf"), "Q8_0"),
                 (source, os.path.join(source, "model.safetensors"), "Q8_0"),
                 (os.path.join(self.folder, ".", "m.gguf"), self.folder, "W8A8")]
        for model, out, scheme in cases:
            for flags in ([], ["--force"]):
                to = ["--to", "gguf" if scheme[0] == "Q" else "hf"]
                line = self.fails(2, "quantize", model, "-o", out, "--scheme", scheme, *to, *flags)
                self.assertIn("replace the input", line)
        self.assertEqual(snapshot(self.folder), before)

    def test_force(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.write("o.gguf", "mine")
        line = self.fails(2, "quantize", source, "-o", self.path("o.gguf"), "--scheme", "Q8_0")
        self.assertIn("--force", line)
        self.fails(2, "quantize", source, "-o", self.path("o.gguf"), "--scheme", "Q8_0", "--dry-run")
        with open(self.path("o.gguf")) as f:
            self.assertEqual(f.read(), "mine")
        self.ok("quantize", source, "-o", self.path("o.gguf"), "--scheme", "Q8_0", "--force")
        self.inspect(self.path("o.gguf"))
        # somebody's folder is never replaced
        self.write("home/notes.txt", "mine")
        self.fails(2, "quantize", source, "-o", self.path("home"), "--scheme", "W8A8", "--force")
        self.assertEqual(os.listdir(self.path("home")), ["notes.txt"])

    def test_a_failure_leaves_the_old_output(self):
        good = lib.write_hf(self.path("hf"), MODEL, "bf16")
        bad = self.nan_folder()
        self.ok("quantize", good, "-o", self.path("o"), "--scheme", "W8A8")
        self.ok("quantize", good, "-o", self.path("o.gguf"), "--scheme", "Q8_0")
        before = snapshot(self.folder)
        self.fails(1, "quantize", bad, "-o", self.path("o"), "--scheme", "W4A16", "--force")
        self.fails(1, "quantize", bad, "-o", self.path("o.gguf"), "--scheme", "Q4_0", "--force")
        self.assertEqual(snapshot(self.folder), before)

    def test_somebody_else_is_writing(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        with open(self.path(".o.gguf.nibble-tmp"), "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            line = self.fails(3, "quantize", source, "-o", self.path("o.gguf"), "--scheme", "Q8_0")
            self.assertIn("locked", line)
        self.ok("quantize", source, "-o", self.path("o.gguf"), "--scheme", "Q8_0")
        self.assertEqual(sorted(os.listdir(self.folder)),
                         ["hf", "o.gguf", "o.gguf.nibble-report.json"])

    def test_places_that_cannot_be_written(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        for out in (self.path("no", "such", "folder"), self.path("x" * 300)):
            done = lib.nibble("quantize", source, "-o", out, "--scheme", "W8A8")
            self.assertIn(done.code, (2, 3), done.err)
        self.assertEqual(os.listdir(self.folder), ["hf"])

    # ---- interruption ----

    def start(self, source, out, scheme):
        return subprocess.Popen([lib.BINARY, "quantize", source, "-o", out, "--scheme", scheme],
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                env=lib.environment())

    def test_killed_at_any_moment(self):
        source = lib.write_hf(self.path("hf"), lib.TinyModel(d_model=128, d_ff=512), "bf16")
        for scheme, out in (("W4A16", self.path("o")), ("Q4_0", self.path("o.gguf"))):
            begin = time.monotonic()
            self.ok("quantize", source, "-o", out, "--scheme", scheme)
            whole = time.monotonic() - begin
            want = snapshot(out)
            rng = random.Random(scheme)
            n_cut = 0
            for _ in range(25):
                remove(out)
                child = self.start(source, out, scheme)
                time.sleep(rng.uniform(0, whole))
                child.kill()
                child.communicate()
                if os.path.exists(out):
                    self.assertEqual(snapshot(out), want)  # it was done, and is whole
                else:
                    n_cut += 1
            self.assertGreater(n_cut, 0)
            remove(out)
            self.ok("quantize", source, "-o", out, "--scheme", scheme)
            self.assertEqual(snapshot(out), want)
            left = [n for n in os.listdir(self.folder) if n.endswith("nibble-tmp")]
            self.assertEqual(left, [])

    def test_asked_to_stop(self):
        source = lib.write_hf(self.path("hf"), lib.TinyModel(d_model=256, d_ff=512, n_layers=6),
                              "bf16")
        out = self.path("o")
        codes = set()
        for i in range(12):
            remove(out)
            child = self.start(source, out, "W4A16")
            time.sleep(0.004 * i)
            child.send_signal(signal.SIGTERM if i % 2 else signal.SIGINT)
            err = child.communicate()[1].decode()
            codes.add(child.returncode)
            if child.returncode == 5:
                self.assertEqual(os.listdir(self.folder), ["hf"])
                self.assertIn("interrupted", err)
            # before the handlers stand, the signal ends the process; after the work, nothing does
            self.assertIn(child.returncode, (5, 0, -signal.SIGTERM, -signal.SIGINT), err)

    # ---- what else comes from outside ----

    def test_config_and_tensors_disagree(self):
        for key, value, parts in (("hidden_size", 128, ("embed_tokens", "64", "128")),
                                  ("num_hidden_layers", 3, ("3 layers", "have 2")),
                                  ("num_hidden_layers", 1, ("1 layers", "have 2")),
                                  ("intermediate_size", 96, ("gate_proj", "96", "128")),
                                  ("model_type", "bert", ("bert",))):
            files = lib.hf_files(MODEL, "bf16")
            config = json.loads(files["config.json"])
            config[key] = value
            if key == "hidden_size":
                config["head_dim"] = 16
            files["config.json"] = json.dumps(config).encode()
            for file, content in files.items():
                self.write("bad/" + file, content)
            line = self.fails(1, "quantize", self.path("bad"), "-o", self.path("o"),
                              "--scheme", "W8A8")
            for part in parts:
                self.assertIn(part, line)
            self.assertEqual(os.listdir(self.folder), ["bad"])

    def test_a_truncated_source(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        path = os.path.join(source, "model.safetensors")
        size = os.path.getsize(path)
        for cut in (1, size // 2, size - 100):
            os.truncate(path, size - cut)
            self.fails(1, "quantize", source, "-o", self.path("o"), "--scheme", "W8A8")
        self.assertEqual(os.listdir(self.folder), ["hf"])

    def test_shards_and_untied_heads(self):
        model = lib.TinyModel(tied=False)
        source = lib.write_hf(self.path("hf"), model, "f16", shards=3)
        self.ok("quantize", source, "-o", self.path("o"), "--scheme", "W4A16")
        tensors, _ = self.inspect(self.path("o"))
        self.assertEqual(tensors["lm_head.weight"]["format"], "f16")
        self.assertEqual(tensors[LINEARS[0]]["scale_type"], "f16")  # the source's own type
        with open(self.path("o", "config.json")) as f:
            self.assertIn("lm_head", json.load(f)["quantization_config"]["ignore"])
        self.ok("quantize", source, "-o", self.path("o.gguf"), "--scheme", "Q4_0")
        tensors, _ = self.inspect(self.path("o.gguf"))
        self.assertEqual(tensors["lm_head.weight"]["format"], "q8_0")

    def test_the_config_of_the_output(self):
        source = lib.write_hf(self.path("hf"), MODEL, "bf16")
        with open(os.path.join(source, "config.json")) as f:
            before = json.load(f)
        self.ok("quantize", source, "-o", self.path("o"), "--scheme", "W4A8:g32")
        with open(self.path("o", "config.json")) as f:
            after = json.load(f)
        quantization = after.pop("quantization_config")
        self.assertEqual(before, after)
        self.assertEqual(quantization["quant_method"], "compressed-tensors")
        (group,) = quantization["config_groups"].values()
        self.assertEqual(group["targets"], ["Linear"])
        self.assertEqual(group["weights"]["group_size"], 32)
        self.assertEqual(group["input_activations"]["strategy"], "token")
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            with open(os.path.join(source, name), "rb") as a, open(self.path("o", name), "rb") as b:
                self.assertEqual(a.read(), b.read())
        # a model that is quantized already: its quantization_config is replaced
        self.ok("quantize", self.path("o"), "-o", self.path("p"), "--scheme", "W8A16")
        with open(self.path("p", "config.json")) as f:
            (group,) = json.load(f)["quantization_config"]["config_groups"].values()
        self.assertEqual((group["weights"]["num_bits"], group["input_activations"]), (8, None))

    def test_quiet_and_words(self):
        source = lib.write_gguf(self.path("m.gguf"), MODEL, "q4_1", "q8_0")
        out = self.ok("quantize", source, "-o", self.path("o"), "--scheme", "W4A16", "--quiet")
        self.assertEqual(len(out.splitlines()), 1)
        out = self.ok("quantize", source, "-o", self.path("o"), "--scheme", "W4A16", "--force")
        self.assertIn("requantizing: 14 of the 14", out)
        self.assertIn("in the linear layers), in ", out)


def snapshot(path):
    """Every file below a path, with its bytes; but for the report, which tells of seconds."""
    if os.path.isfile(path):
        with open(path, "rb") as f:
            return f.read()
    return {name: snapshot(os.path.join(path, name)) for name in sorted(os.listdir(path))
            if "nibble-report.json" not in name}


def remove(path):
    if os.path.isdir(path):
        for name in os.listdir(path):
            os.remove(os.path.join(path, name))
        os.rmdir(path)
    elif os.path.exists(path):
        os.remove(path)


if __name__ == "__main__":
    lib.main()
