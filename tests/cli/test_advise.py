"""nibble advise: what a model takes, from its config alone or from its files, and what to run."""

import json
import os
import shlex

import lib

LLAMA2_7B = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
             "intermediate_size": 11008, "vocab_size": 32000, "num_attention_heads": 32,
             "max_position_embeddings": 4096}
MIXTRAL = dict(LLAMA2_7B, model_type="mixtral", intermediate_size=14336, num_key_value_heads=8,
               num_local_experts=8, num_experts_per_tok=2)
KEYS = ["path", "model_type", "runs", "source", "parameters", "active_parameters", "memory_limit_bytes", "ctx",
        "batch", "activation_bytes", "kv", "limits", "candidates", "kl_source", "advice"]


class Advise(lib.Case):
    def config(self, numbers, name="config.json"):
        return self.write(name, json.dumps(numbers))

    def advise(self, *args, **more):
        (line,) = lib.json_lines(self.ok("advise", *args, "--no-measure", "--json", **more))
        return line

    def test_keys_and_numbers_of_a_config(self):
        a = self.advise(self.config(LLAMA2_7B), "--memory", "16G")
        self.assertEqual(list(a), KEYS)
        self.assertEqual(a["parameters"], 6738415616)
        self.assertEqual(a["kv"]["f16"]["bytes_per_token"], 512 * 1024)
        for length in (4096, 8192, 16384, 32768, 65536):
            self.assertEqual(a["kv"]["f16"][str(length)], 512 * 1024 * length)
            self.assertEqual(a["kv"]["int8"][str(length)], 2 * 32 * 32 * 130 * length)
            self.assertEqual(a["kv"]["int4"][str(length)], 2 * 32 * 32 * 80 * length)
            self.assertEqual(a["kv"]["int2"][str(length)], 2 * 32 * 32 * 48 * length)
        self.assertIsNone(a["limits"])
        self.assertEqual(a["memory_limit_bytes"], 16 << 30)
        sizes = {c["scheme"]: c["bytes"] for c in a["candidates"]}
        self.assertAlmostEqual(sizes["BF16"] / (2 * 6738415616), 1, 4)
        # 6476267520 weights in the blocks at 4 + 16/128 bits, 2 tables and 65 norms at 16.
        self.assertAlmostEqual(sizes["W4A16:g128"] /
                               (6476005376 * 4.125 / 8 + 2 * (6738415616 - 6476005376)), 1, 3)
        self.assertEqual(a["advice"]["leaf"], "8-bit")

    def test_every_leaf_by_flags(self):
        config = self.config(LLAMA2_7B)
        for leaf, args in (("keep", ["--accuracy", "exact", "--memory", "24G"]),
                           ("8-bit", ["--memory", "16G"]),
                           ("8-bit-server", ["--memory", "60G", "--batch", "16"]),
                           ("4-bit", ["--memory", "6500M"]),
                           ("4-bit-first", ["--accuracy", "balanced", "--memory", "16G"]),
                           ("3-bit", ["--accuracy", "small", "--memory", "16G"]),
                           ("2-bit", ["--memory", "3900M"]),
                           ("nodes", ["--memory", "1G"]),
                           ("train-full", ["--for", "training", "--memory", "150G"]),
                           ("train-qat", ["--for", "training", "--memory", "150G", "--accuracy",
                                          "balanced"]),
                           ("train-qlora", ["--for", "training", "--memory", "16G"]),
                           ("train-nodes", ["--for", "training", "--memory", "2G"])):
            advice = self.advise(config, *args)["advice"]
            self.assertEqual(advice["leaf"], leaf, args)
            self.assertEqual(advice["command"] is None,
                             leaf in ("keep", "nodes") or leaf.startswith("train"))

    def test_experts(self):
        a = self.advise(self.config(MIXTRAL), "--memory", "48G")
        self.assertEqual((a["parameters"], a["runs"]), (46702792704, False))
        self.assertLess(a["active_parameters"], 13e9)
        self.assertEqual((a["advice"]["nodes_16"], a["advice"]["nodes_4"]), (2, 1))
        self.assertIsNone(a["advice"]["command"])
        text = self.ok("advise", self.config(MIXTRAL), "--memory", "48G", "--no-measure")
        self.assertIn("2 of 8 experts", text)
        self.assertIn("2 machines of this memory, in 4 bits 1", text)

    def test_the_command_works_and_makes_what_was_said(self):
        model = lib.write_hf(self.path("hf"), lib.TinyModel(n_layers=2, d_model=64, d_ff=96), "bf16")
        a = self.advise(model)
        words = shlex.split(a["advice"]["command"])
        self.assertEqual(words[:2], ["nibble", "quantize"])
        out = self.path("out")
        words[words.index("OUT")] = out
        self.ok(*words[1:])
        made = os.path.getsize(os.path.join(out, "model.safetensors"))
        (said,) = [c["bytes"] for c in a["candidates"] if c["scheme"] == a["advice"]["scheme"]]
        # The file is so small that names of tensors, which are guessed, weigh most.
        self.assertLess(abs(said - made), 0.2 * made)
        (bpw,) = [c["bpw"] for c in a["candidates"] if c["scheme"] == "W8A16"]
        line = json.loads(self.ok("quantize", model, "-o", out, "--scheme", "W8A16", "--dry-run",
                                  "--force", "--json"))
        self.assertAlmostEqual(bpw, line["bpw"], 9)

    def test_folder_file_and_config_agree(self):
        model = lib.TinyModel(n_layers=2)
        folder = lib.write_hf(self.path("hf"), model, "bf16")
        file = self.path("m.gguf")
        lib.write_gguf(file, model, "f32")
        lines = [self.advise(path, "--memory", "1G")
                 for path in (folder, os.path.join(folder, "config.json"), file)]
        for line in lines:
            self.assertEqual(line["parameters"], model.n_parameters())
            self.assertEqual(line["candidates"], lines[0]["candidates"])
            self.assertEqual(line["kv"], lines[0]["kv"])

    def test_weights_and_cache_are_chosen_together(self):
        """Beside an F16 cache nothing fits into 4.5 GB; an INT8 one leaves room for 3 bits."""
        a = self.advise(self.config(LLAMA2_7B), "--memory", "4500000000")["advice"]
        self.assertEqual((a["kv"], a["scheme"]), ("int8", "W3A16:g64,asym"))
        self.assertIn("makes room", a["kv_because"])

    def test_every_candidate_has_a_number(self):
        a = self.advise(self.config(LLAMA2_7B), "--memory", "7G")
        numbers = {c["scheme"]: (c["kl_smollm2_135m"], c["kl_measured"]) for c in a["candidates"]}
        self.assertEqual(numbers["W8A16"], (0.0033, True))
        self.assertFalse(numbers["W4A16:g128"][1])
        self.assertGreater(numbers["W4A16:g128"][0], numbers["W4A16:g64"][0])
        advice = a["advice"]
        self.assertEqual(advice["method"], "gptq")
        self.assertLess(advice["kl_smollm2_135m"], numbers[advice["scheme"]][0])
        text = self.ok("advise", self.config(LLAMA2_7B), "--memory", "7G", "--no-measure")
        self.assertIn("by gptq a KL of", text)
        self.assertIn("~", text)

    def test_what_is_quantized_already_is_not_made_larger(self):
        gptq = dict(LLAMA2_7B, quantization_config={"quant_method": "gptq", "bits": 4,
                                                    "group_size": 128})
        a = self.advise(self.config(gptq), "--memory", "16G")
        self.assertEqual(a["source"]["what"], "gptq, 4 bits in groups of 128")
        self.assertEqual((a["advice"]["leaf"], a["advice"]["command"]), ("keep", None))
        text = self.ok("advise", self.config(gptq), "--memory", "16G", "--no-measure")
        self.assertIn("quantized already: gptq, 4 bits", text)
        self.assertIn("no gain", text)
        a = self.advise(self.config(gptq), "--memory", "4500000000")
        self.assertEqual(a["advice"]["scheme"], "W3A16:g64,asym")
        self.assertIn("quantize the original", a["advice"]["because"])
        bad = dict(gptq, quantization_config={"quant_method": "gptq", "bits": "four"})
        self.assertIn("bits", self.fails(1, "advise", self.config(bad), "--no-measure"))

    def test_files_that_are_quantized_say_what_they_take(self):
        model = lib.TinyModel(n_layers=2)
        file = lib.write_gguf(self.path("m.gguf"), model, "q4_0")
        folder = self.path("w4")
        self.ok("quantize", lib.write_hf(self.path("hf"), model, "bf16"), "-o", folder, "--scheme",
                "W4A16:g32")
        for path, word, tensors in ((file, "q4_0", file),
                                    (folder, "compressed-tensors, 4 bits in groups of 32",
                                     os.path.join(folder, "model.safetensors"))):
            a = self.advise(path, "--memory", "1G")
            self.assertIn(word, a["source"]["what"])
            self.assertEqual(a["source"]["bytes"], os.path.getsize(tensors))
            self.assertEqual(a["advice"]["leaf"], "keep")

    def test_text_says_where_losses_come_from(self):
        text = self.ok("advise", self.config(LLAMA2_7B), "--memory", "16G", "--no-measure")
        self.assertIn("measured on SmolLM2-135M, not promised", text)
        self.assertIn("512.0 KiB", text)
        self.assertIn("advice: 8-bit, W8A16", text)

    def test_speeds_with_a_measurement(self):
        a = json.loads(self.ok("advise", self.config(LLAMA2_7B), "--memory", "16G", "--json",
                               "--threads", "1"))
        self.assertGreater(a["limits"]["read_gb_s"], 0)
        for c in a["candidates"]:
            self.assertGreater(c["decode_tok_s"], 0)
            self.assertGreater(c["prefill_tok_s"], 0)

    def test_bad_configs_are_refused_by_name(self):
        for content, where in (("", "bad.json"), ("[]", "object"), ("{", "bad.json"),
                               (json.dumps({"model_type": "t5"}), "t5"),
                               (json.dumps(dict(LLAMA2_7B, hidden_size=0)), "hidden_size"),
                               (json.dumps(dict(LLAMA2_7B, vocab_size="\x1b[31m")), "vocab_size"),
                               (json.dumps(dict(LLAMA2_7B, kv_lora_rank=512)), "kv_lora_rank"),
                               ("[" * 5000, "bad.json")):
            path = self.write("bad.json", content)
            self.assertIn(where, self.fails(1, "advise", path, "--no-measure"))
        self.fails(1, "advise", self.path("absent.json"), "--no-measure")
        self.fails(1, "advise", self.folder, "--no-measure")
        self.fails(2, "advise")
        self.fails(2, "advise", self.config(LLAMA2_7B), "--accuracy", "best")
        self.fails(2, "advise", self.config(LLAMA2_7B), "--memory", "0")


if __name__ == "__main__":
    lib.main()
