"""nibble run: what is printed where, how it ends, and that nothing about it depends on the machine."""

import json
import os
import platform
import pty
import signal
import struct
import subprocess

import lib

MODEL = lib.TinyModel(n_layers=1, tied=False)
KEYS = ["text", "tokens", "prompt_tokens", "cached_tokens", "generated_tokens", "stop_reason", "seed",
        "temperature", "logits_hash", "prefill_tok_s", "decode_tok_s", "compute", "kv", "isa",
        "threads", "ctx", "dropped_turns"]


def text_of(ids):
    """The text of token ids, special ones left out."""
    back = {c: b for b, c in enumerate(lib.byte_alphabet())}
    raw = b"".join(bytes(back[c] for c in MODEL.tokens[i]) for i in ids if i >= len(lib.SPECIALS))
    return raw.decode(errors="replace")


class Run(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_gguf(self.path("m.gguf"), MODEL, "q8_0")

    def run_json(self, *args, model=None, **more):
        lines = lib.json_lines(self.ok("run", model or self.model, "--json", *args, **more))
        self.assertEqual(len(lines), 1)
        return lines[0]

    def test_text_and_json_agree(self):
        args = ["the station", "-n", "20", "--temperature", "1.5", "--seed", "3"]
        j = self.run_json(*args)
        self.assertEqual(list(j), KEYS)
        self.assertEqual(j["text"], text_of(j["tokens"]))
        self.assertEqual((j["generated_tokens"], j["seed"], j["temperature"]), (20, 3, 1.5))
        self.assertEqual((j["stop_reason"], j["cached_tokens"], j["ctx"]), ("max_tokens", 0, 256))
        self.assertGreater(j["prefill_tok_s"], 0)
        self.assertGreater(j["decode_tok_s"], 0)
        self.assertEqual(self.ok("run", self.model, *args), j["text"] + "\n")
        one = self.run_json("the station", "-n", "1")
        self.assertIsNone(one["decode_tok_s"])

    def test_the_answer_does_not_depend_on_the_machine(self):
        args = ["it is the station", "-n", "30", "--temperature", "1", "--seed", "1"]
        first = self.run_json(*args)
        for more in (["--threads", "1"], ["--threads", "auto"], ["--threads", "3"], ["--isa", "scalar"], ["--isa", "avx2"]):
            j = self.run_json(*args, *more)
            self.assertEqual((j["tokens"], j["logits_hash"]), (first["tokens"], first["logits_hash"]))
        other = self.run_json(*args, "--compute", "f")
        self.assertEqual((first["compute"], other["compute"]), ("i8", "f"))
        self.assertNotEqual(other["logits_hash"], first["logits_hash"])

    def test_what_the_machine_lacks_is_refused_by_name(self):
        name = "avx2" if platform.machine() == "aarch64" else "neon"
        done = lib.nibble("run", self.model, "x", "--isa", name)
        self.assertEqual((done.code, done.out), (2, ""))
        self.assertIn(f"this machine has no {name}: its best is ", done.err)

    def test_a_prompt_comes_from_anywhere(self):
        prompt = "the \u20ac end\n"
        want = self.run_json(prompt, "-n", "5")
        path = self.write("p.txt", prompt)
        for got in (self.run_json("-", "-n", "5", stdin=prompt.encode()),
                    self.run_json("--file", path, "-n", "5"),
                    self.run_json("--file", "-", "-n", "5", stdin=prompt.encode())):
            self.assertEqual((got["tokens"], got["logits_hash"]), (want["tokens"], want["logits_hash"]))
        for args in ([], ["a", "--file", path], ["-", "--file", path]):
            self.assertIn("give one prompt", self.fails(2, "run", self.model, *args))
        self.assertIn("none: ", self.fails(1, "run", self.model, "--file", self.path("none")))

    def test_an_empty_prompt_starts_at_bos(self):
        self.assertEqual(self.run_json("", "-n", "3")["prompt_tokens"], 1)

    def test_seeds(self):
        drawn = self.run_json("the", "-n", "25", "--temperature", "2")
        again = self.run_json("the", "-n", "25", "--temperature", "2", "--seed", str(drawn["seed"]))
        self.assertEqual(again["tokens"], drawn["tokens"])
        other = self.run_json("the", "-n", "25", "--temperature", "2", "--seed",
                              str(drawn["seed"] + 1))
        self.assertNotEqual(other["tokens"], drawn["tokens"])
        done = lib.nibble("run", self.model, "the", "-n", "2", "--temperature", "2")
        self.assertIn("; seed ", done.err)

    def test_what_chooses_a_token(self):
        greedy = self.run_json("the", "-n", "12")
        self.assertEqual((greedy["temperature"], greedy["seed"]), (0, 0))
        for same in (["--top-k", "1"], ["--temperature", "1000", "--top-k", "1"], ["--min-p", "1"],
                     ["--top-p", "0.000001"], ["--greedy"], ["--temperature", "0"]):
            self.assertEqual(self.run_json("the", "-n", "12", *same)["tokens"], greedy["tokens"], same)
        self.assertEqual(self.run_json("the", "-n", "1", "--top-k", "5")["temperature"], 1)
        for other in (["--repeat-penalty", "1.9"], ["--frequency-penalty", "50"],
                      ["--presence-penalty", "50"]):
            self.assertNotEqual(self.run_json("the", "-n", "40", *other)["tokens"],
                                self.run_json("the", "-n", "40")["tokens"], other)
        distinct = self.run_json("the", "-n", "40", "--presence-penalty", "1000")["tokens"]
        self.assertEqual(len(set(distinct)), len(distinct))

    def test_generation_config_is_heeded(self):
        folder = lib.write_hf(self.path("hf"), MODEL, "f32")
        self.assertEqual(self.run_json("the", "-n", "1", model=folder)["temperature"], 0)
        config = {"do_sample": True, "temperature": 0.25, "top_p": 0.9, "eos_token_id": 2}
        self.write("hf/generation_config.json", json.dumps(config))
        self.assertEqual(self.run_json("the", "-n", "1", model=folder)["temperature"], 0.25)
        self.assertEqual(self.run_json("the", "-n", "1", "--greedy", model=folder)["temperature"], 0)
        self.assertEqual(self.run_json("the", "-n", "1", "--temperature", "3",
                                       model=folder)["temperature"], 3)
        self.write("hf/generation_config.json", json.dumps(dict(config, top_p=7)))
        self.assertIn("generation_config.json: top_p is 7", self.fails(1, "run", folder, "the"))

    def test_stop_strings(self):
        args = ["the", "-n", "60", "--temperature", "1.5", "--seed", "9"]
        whole = self.run_json(*args)["text"]
        plain = [c for c in whole if c.isascii() and c.isprintable()]
        stop = plain[len(plain) // 2]
        j = self.run_json(*args, "--stop", "never, never", "--stop", stop)
        self.assertEqual((j["stop_reason"], j["text"]), ("stop", whole[:whole.index(stop)]))
        self.assertIn("a stop string of 0 bytes", self.fails(2, "run", self.model, "the", "--stop", ""))

    def test_what_ends_an_answer(self):
        args = ["the", "-n", "40", "--temperature", "1.5", "--seed", "9"]
        whole = self.run_json(*args, "--ignore-eos")["tokens"]
        self.assertEqual(len(whole), 40)
        at = whole.index(whole[20])
        cut = self.run_json(*args, "--ignore-eos", "--stop-id", str(whole[20]))
        self.assertEqual((cut["tokens"], cut["stop_reason"]), (whole[:at], "eos"))
        kept = self.run_json(*args, "--ignore-eos", "--stop-id", str(whole[20]), "--min-tokens", "35")
        self.assertGreaterEqual(len(kept["tokens"]), 35)
        self.assertNotIn(whole[20], kept["tokens"][:35])
        self.assertIn("--min-tokens 41 is more than --max-tokens 40",
                      self.fails(2, "run", self.model, *args, "--min-tokens", "41"))
        for bad in ("x", "-1", "1.5", "99999999999"):
            self.assertIn("is not a token id", self.fails(2, "run", self.model, "the", "--stop-id=" + bad))
        self.assertIn("outside the vocabulary", self.fails(2, "run", self.model, "the", "--stop-id", "99999"))

    def test_logit_bias(self):
        args = ["the", "-n", "6", "--greedy"]
        j = self.run_json(*args, "--logit-bias", "70=100", "--logit-bias", "71=99.5e0")
        self.assertEqual(j["tokens"], [70] * 6)
        banned = self.run_json(*args)["tokens"][0]
        self.assertNotIn(banned, self.run_json(*args, "--logit-bias", f"{banned}=-100")["tokens"])
        for bad, why in (("70", "is not ID=B"), ("a=1", "is not a token id"), ("70=", "is not a number"),
                         ("70=1,5", "is not a number"), ("9999999=1", "outside the vocabulary")):
            self.assertIn(why, self.fails(2, "run", self.model, *args, "--logit-bias", bad))

    def test_logprobs(self):
        args = ["the", "-n", "10"]
        plain = self.run_json(*args)
        j = self.run_json(*args, "--logprobs", "3")
        self.assertEqual(list(j), KEYS + ["logprobs"])
        self.assertEqual((j["tokens"], j["logits_hash"]), (plain["tokens"], plain["logits_hash"]))
        for token, row in zip(j["tokens"], j["logprobs"], strict=True):
            self.assertEqual(row["id"], token)
            top = [t["logprob"] for t in row["top"]]
            self.assertEqual(len(top), 3)
            self.assertEqual(top, sorted(top, reverse=True))
            self.assertEqual((row["top"][0]["id"], top[0]), (token, row["logprob"]))
            self.assertLess(top[0], 0)
        self.assertEqual([r["top"] for r in self.run_json(*args, "--logprobs", "0")["logprobs"]], [[]] * 10)
        self.assertIn("with --json only", self.fails(2, "run", self.model, "the", "--logprobs", "1"))
        self.assertIn("21", self.fails(2, "run", self.model, "the", "--json", "--logprobs", "21"))

    def test_answers_are_json(self):
        schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 4},
                                                   "n": {"enum": [1, 22, None]}},
                  "required": ["a", "n"], "additionalProperties": False}
        path = self.write("s.json", json.dumps(schema))
        for seed in range(4):
            j = self.run_json("the", "-n", "0", "--json-schema", path, "--temperature", "1", "--seed", str(seed))
            value = json.loads(j["text"])
            self.assertEqual(list(value), ["a", "n"])
            self.assertLessEqual(len(value["a"]), 4)
            self.assertIn(value["n"], [1, 22, None])
            self.assertEqual(j["stop_reason"], "eos")
        cut = self.run_json("the", "-n", "1", "--json-object")
        self.assertEqual(cut["stop_reason"], "max_tokens")
        self.assertIn(cut["text"].lstrip(), ("", "{"))
        self.assertIn("give one of them", self.fails(2, "run", self.model, "the", "--json-object", "--json-schema", path))
        self.assertIn("do not go with it", self.fails(2, "run", self.model, "the", "--json-object", "--ignore-eos"))
        bad = self.write("bad.json", '{"items": {"format": "date"}}')
        self.assertIn("at '#/items': the keyword 'format' is not supported",
                      self.fails(1, "run", self.model, "the", "--json-schema", bad))
        self.assertIn("none.json", self.fails(1, "run", self.model, "the", "--json-schema", self.path("none.json")))

    def test_guesses_change_the_speed_alone(self):
        for how in (["--greedy"], ["--temperature", "0.5", "--seed", "3"]):
            args = ["the land and the land and the", "-n", "60", *how]
            plain, guessed = self.run_json(*args), self.run_json(*args, "--speculate", "ngram:5")
            for key in ("text", "tokens", "logits_hash", "stop_reason"):
                self.assertEqual(guessed[key], plain[key])
            self.assertEqual(list(guessed), KEYS + ["guessed_tokens", "accepted_tokens"])
            self.assertLessEqual(guessed["accepted_tokens"], guessed["guessed_tokens"])
        always = self.run_json("the", "-n", "50", "--logit-bias", "70=100", "--speculate", "ngram:16")
        self.assertGreater(always["accepted_tokens"], 35)
        for bad in ("ngram", "ngram:0", "ngram:17", "ngram:x", "draft:4", "ngram:04x"):
            self.assertIn("is not ngram:K", self.fails(2, "run", self.model, "the", "--speculate", bad))

    def test_a_draft_model_changes_the_speed_alone(self):
        """By itself every guess is right; by another few are. Names of other programs do as well."""
        other = lib.write_gguf(self.path("other.gguf"), lib.TinyModel(n_layers=1, tied=False, seed=9), "q8_0")
        for how in (["--greedy"], ["--temperature", "0.9", "--seed", "3"]):
            args = ["the land and the", "-n", "60", *how]
            plain = self.run_json(*args)
            for draft, name, n in ((self.model, "--draft-model", ["--draft-tokens", "4"]),
                                   (other, "--speculative-model", []),
                                   (self.model, "--model-draft", ["--draft-max", "9"])):
                guessed = self.run_json(*args, name, draft, *n)
                for key in ("text", "tokens", "logits_hash", "stop_reason"):
                    self.assertEqual(guessed[key], plain[key])
                self.assertEqual(list(guessed), KEYS + ["guessed_tokens", "accepted_tokens"])
                if draft == self.model:
                    self.assertEqual(guessed["accepted_tokens"], guessed["guessed_tokens"])
                    self.assertGreater(guessed["accepted_tokens"], plain["generated_tokens"] / 3)
                else:
                    self.assertLess(guessed["guessed_tokens"], 40)
        notes = lib.nibble("run", self.model, "the", "-n", "3", "--draft-model", other).err
        self.assertIn("\ndraft other.gguf: ", notes)
        said = self.ok("chat", self.model, "-m", "hello", "--greedy", "-n", "9")
        self.assertEqual(self.ok("chat", self.model, "-m", "hello", "--greedy", "-n", "9", "--draft-model", other), said)

    def test_a_draft_model_has_the_model_s_tokenizer(self):
        swapped = lib.TinyModel(n_layers=1, tied=False)
        a, b = len(lib.SPECIALS) + 70, len(lib.SPECIALS) + 71
        swapped.tokens = list(swapped.tokens)
        swapped.tokens[a], swapped.tokens[b] = swapped.tokens[b], swapped.tokens[a]
        path = lib.write_gguf(self.path("swapped.gguf"), swapped, "q8_0")
        said = self.fails(1, "run", self.model, "the", "--draft-model", path)
        self.assertIn("swapped.gguf: token %d of " % a, said)
        self.assertIn("a draft model needs the model's tokenizer", said)
        for code, args, says in (
                (1, ["--draft-model", self.path("none.gguf")], "none.gguf"),
                (2, ["--draft-model", self.model, "--speculate", "ngram:3"], "give one of them"),
                (2, ["--draft-tokens", "3"], "belongs to --draft-model"),
                (2, ["--draft-model", self.model, "--draft-tokens", "17"], "from 1 to 16"),
                (2, ["--draft-model", self.model, "--model-draft", self.model], "is given twice")):
            self.assertIn(says, self.fails(code, "run", self.model, "the", *args))

    def test_a_full_context_stops_with_one_line(self):
        for policy, extra in (("stop", ""), ("drop-oldest-turn", "no older turn to forget")):
            done = lib.nibble("run", self.model, "the station", "-n", "0", "--ctx", "40", "--quiet",
                              "--presence-penalty", "5", "--ctx-policy", policy)
            self.assertEqual(done.code, 0, done.err)
            self.assertEqual(len(done.err.splitlines()), 1, done.err)
            self.assertIn("nibble: warning: the context of 40 tokens is full", done.err)
            self.assertIn("is full and there is" if policy != "stop" else "is full: stopped", done.err)
        j = self.run_json("the station", "-n", "0", "--ctx", "40", "--presence-penalty", "5")
        self.assertEqual(j["stop_reason"], "context")
        self.assertEqual(j["prompt_tokens"] + j["generated_tokens"], 40)

    def test_a_prompt_too_long_is_refused_with_both_numbers(self):
        line = self.fails(4, "run", self.model, "1" * 50, "--ctx", "40")
        self.assertIn("the prompt has 50 tokens and the context holds 40", line)
        # Exactly as long as the context: nothing can follow.
        done = lib.nibble("run", self.model, "1" * 40, "--ctx", "40", "--json")
        self.assertEqual(done.code, 0)
        self.assertIn("is full: stopped after 0 generated tokens", done.err)
        self.assertEqual(json.loads(done.out)["tokens"], [])

    def test_a_context_past_the_training_length_is_pointed_out(self):
        done = lib.nibble("run", self.model, "the", "-n", "2", "--ctx", "400", "-q")
        self.assertIn("was trained for 256 tokens of context, not 400", done.err)

    def test_special_tokens(self):
        n = len(json.loads(self.ok("tokenize", self.model, "--json", "--text", "a<|im_end|>"))["ids"])
        self.assertEqual(self.run_json("a<|im_end|>", "-n", "1")["prompt_tokens"], n)
        self.assertEqual(self.run_json("a<|im_end|>", "-n", "1", "--special")["prompt_tokens"], 2)

    def test_chat_applies_the_template(self):
        text = "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nhe is<|im_end|>\n" \
               "<|im_start|>assistant\n"
        want = self.run_json(text, "--special", "-n", "8")
        got = self.run_json("he is", "--chat", "--system", "brief", "-n", "8")
        self.assertEqual((got["tokens"], got["logits_hash"]), (want["tokens"], want["logits_hash"]))
        self.assertIn("add --chat", self.fails(2, "run", self.model, "a", "--system", "b"))
        keys = lib.gguf_keys(MODEL)
        del keys["tokenizer.chat_template"]
        path = self.write("plain.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL)))
        self.assertIn("no chat template; 'nibble run' completes", self.fails(1, "run", path, "a",
                                                                             "--chat"))

    def test_notes_go_to_standard_error(self):
        done = lib.nibble("run", self.model, "the", "-n", "3", "--threads", "2", "--isa", "scalar")
        plan, summary = done.err.splitlines()
        self.assertTrue(plan.startswith("m.gguf: "), plan)
        for part in ("mode i8, scalar, threads: 2; KV f16, ", " at 256 tokens; greedy"):
            self.assertIn(part, plan)
        self.assertRegex(summary, r"^prompt: \d+ tokens \(0 of them cached\), [0-9.]+ tok/s; "
                                  r"generated: 3 tokens, [0-9.]+ tok/s; stopped: that is --max-tokens$")
        self.assertEqual(lib.nibble("run", self.model, "the", "-n", "3", "-q").err, "")

    def test_wrong_usage(self):
        for args in (["--temperature", "-1"], ["--top-p", "2"], ["--top-k", "-1"], ["--ctx", "0"],
                     ["--ctx-policy", "forget"], ["--greedy", "--top-k", "3"], ["-n", "-1"],
                     ["--temperature", "0.0001"], ["--stop", b"\xff\xfe"]):
            self.fails(2, "run", self.model, "the", *args)

    def test_nan_weights_end_in_a_message(self):
        tensors = lib.gguf_tensors(MODEL, "f32")
        for i, (name, dims, kind, raw) in enumerate(tensors):
            if name == "output.weight":
                at = 4 * MODEL.d_model * 9
                tensors[i] = (name, dims, kind, raw[:at] + struct.pack("<f", float("nan")) + raw[at + 4:])
        path = self.write("nan.gguf", lib.gguf_bytes(lib.gguf_keys(MODEL), tensors))
        self.assertIn("the logit of token 9 is NaN", self.fails(1, "run", path, "the"))

    # ---- interruptions ----

    def start(self, *args, **more):
        path = lib.write_gguf(self.path("endless.gguf"), lib.endless_model(), "f32")
        process = subprocess.Popen([lib.BINARY, "run", path, "the", "-n", "0", "--ctx", "300000", *args],
                                   stderr=subprocess.PIPE, env=lib.environment(), **more)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        return process

    def test_an_interrupt_ends_it_cleanly(self):
        process = self.start(stdout=subprocess.PIPE)
        first = process.stdout.read(1)  # text streams before the answer is whole
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 5)
        self.assertTrue((first + out).endswith(b"\n"))
        lines = err.decode().splitlines()
        self.assertEqual(lines[-1], "nibble: interrupted")
        self.assertIn("stopped: interrupted", lines[-2])

    def test_a_closed_pipe_ends_it(self):
        process = self.start(stdout=subprocess.PIPE)
        process.stdout.read(1)
        process.stdout.close()
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 3)
        self.assertIn("standard output", err.decode())

    def test_control_characters_do_nothing_on_a_terminal(self):
        self.need_terminal()
        args = ["the", "-n", "200", "--temperature", "4", "--seed", "5"]
        raw = self.run_json(*args)["text"]
        controls = [c for c in raw if ord(c) < 32 and c not in "\n\t" or 0x7f <= ord(c) < 0xa0]
        self.assertTrue(controls)  # else this shows nothing
        leader, follower = pty.openpty()
        process = subprocess.Popen([lib.BINARY, "run", self.model, *args], stdout=follower,
                                   stderr=subprocess.DEVNULL, env=lib.environment())
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        os.close(leader)
        self.assertEqual(process.wait(timeout=60), 0)
        want = "".join("".join("\\x%02x" % b for b in [ord(c)]) if c in controls and ord(c) < 0x80
                       else "\\x%02x" % ord(c) if c in controls else c for c in raw)
        self.assertEqual(shown.decode().replace("\r\n", "\n"), want + ("" if want.endswith("\n") else "\n"))


if __name__ == "__main__":
    lib.main()
