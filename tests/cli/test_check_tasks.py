"""quantize --check-tasks: what original and output answer is in the summary, the report and the page,
as eval tells it; what cannot be asked is refused before anything is written."""

import json
import os
import random
import signal
import subprocess
import time

import lib

MODEL = lib.TinyModel(d_model=32, n_heads=2, n_kv_heads=1, d_ff=64)
WORDS = "the cat sat on a mat and nobody knew why it is odd of them".split(" ")


def items(n, seed=3):
    rng = random.Random(seed)

    def text(k):
        return " ".join(rng.choice(WORDS) for _ in range(k))

    for i in range(n):
        if i % 3 == 2:
            yield {"context_options": [text(2), text(3)], "continuation": text(2), "gold": i % 2}
        else:
            yield {"query": text(3), "choices": [text(1), text(2), text(2)], "gold": i % 3}


def lines(objects):
    return "".join(json.dumps(o) + "\n" for o in objects)


class CheckTasks(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.one = self.write("one.jsonl", lines(items(40)))
        self.two = self.write("two.jsonl", lines(items(7, 5)))
        self.text = self.write("t.txt", " ".join(WORDS[i * i % len(WORDS)] for i in range(400)))

    def command(self, *args, out="out", scheme="W2A16:g32"):
        return ["quantize", self.model, "-o", self.path(out), "--scheme", scheme, "--threads", "1",
                *args]

    def report(self, out="out"):
        beside = self.path(out + ".nibble-report.json") if out.endswith(".gguf") else \
            self.path(out, "nibble-report.json")
        with open(beside) as f:
            return json.load(f)

    def evaluated(self, model, *args):
        done = lib.json_lines(self.ok("eval", model, "--tasks", self.one, "--tasks", self.two,
                                      "--threads", "1", "--json", *args))
        return {o["task"]: o for o in done}

    def test_answers_are_those_of_eval_in_line_report_and_page(self):
        tasks = ["--check-tasks", self.one + "," + self.two, "--check-tasks-limit", "30"]
        base = self.evaluated(self.model, "--limit", "30")
        seen = set()
        for out, scheme, more in (("out", "W2A16:g32", []), ("m.gguf", "Q4_0", []),
                                  ("all", "W4A16:g32", ["--calib", self.text, "--calib-samples", "4",
                                                        "--calib-len", "24", "--method", "gptq"])):
            (line,) = lib.json_lines(self.ok(*self.command(*tasks, *more, "--json", out=out,
                                                           scheme=scheme)))
            e = self.report(out)["evaluation"]
            self.assertEqual(e, line["evaluation"])
            made = self.evaluated(self.path(out), "--limit", "30")
            self.assertEqual([t["task"] for t in e["tasks"]], ["one", "two"])
            for t in e["tasks"]:
                for key in ("acc", "acc_se", "acc_norm", "acc_norm_se"):
                    self.assertEqual(t[key], made[t["task"]][key], (out, key))
                    self.assertEqual(t["base_" + key], base[t["task"]][key], (out, key))
                self.assertEqual(t["n"], {"one": 30, "two": 7}[t["task"]])
                self.assertAlmostEqual((t["won"] - t["lost"]) / t["n"], t["acc"] - t["base_acc"])
                self.assertLessEqual(t["won"] + t["lost"], t["flips"])
                self.assertLessEqual(t["flips"], t["n"])
                seen.add(t["flips"])
            page = self.ok("report", self.path(out), "-o", "-")
            self.assertIn("answers that flipped", page)
            t = e["tasks"][0]
            self.assertIn('<th scope="row">one</th><td>30</td><td>%.4f ± %.4f</td><td>%.4f ± %.4f'
                          % (t["acc"], t["acc_se"], t["base_acc"], t["base_acc_se"]), page)
            if more:  # everything there is to know of an output
                for key in ("kl_mean", "perplexity", "base_perplexity", "flips", "noise_floor"):
                    self.assertIn(key, e)
                for what in ("KL mean, nat", "perplexity of the original", "top-1 flips, share",
                             "noise floor, KL"):
                    self.assertIn(what, page)
            else:
                self.assertEqual(set(e), {"tasks", "tasks_seconds"})
        self.assertGreater(max(seen), 0)  # coarse weights answer otherwise

    def test_people_are_told(self):
        out = self.ok(*self.command("--check-tasks", self.two))
        t = self.report()["evaluation"]["tasks"][0]
        self.assertIn("  two: acc %.4f +- %.4f (original %.4f +- " % (t["acc"], t["acc_se"],
                                                                      t["base_acc"]), out)
        self.assertIn("%d of 7 answers differ, %d lost, %d won\n" % (t["flips"], t["lost"],
                                                                     t["won"]), out)
        self.assertNotIn("answers", self.ok(*self.command("--check-tasks", self.two, "--quiet",
                                                          "--force")))

    def test_what_loses_nothing_answers_alike(self):
        recipe = self.write("r.txt", "model.layers.1.self_attn.k_proj = keep\n"
                                     "model.layers.0.mlp.up_proj = W8A16:g32\n")
        self.ok("quantize", self.model, "-o", self.path("out"), "--recipe", recipe, "--check-tasks",
                self.one, "--threads", "1")
        (t,) = self.report()["evaluation"]["tasks"]
        self.assertEqual(t["n"], 40)
        self.assertLess(t["flips"], 4)
        self.assertEqual(len(t["sha256"]), 64)

    def test_of_a_mixture_what_stays_is_asked(self):
        command = ["quantize", self.model, "-o", self.path("out"), "--bpw", "5", "--candidates",
                   "W3A16:g32;W4A16:g32;W8A16:g32", "--calib", self.text, "--calib-samples", "4",
                   "--calib-len", "24", "--threads", "1", "--check-tasks", self.two]
        (dry,) = lib.json_lines(self.ok(*command, "--dry-run", "--json"))
        (line,) = lib.json_lines(self.ok(*command, "--json"))
        self.assertGreaterEqual(dry["memory_bytes"], line["memory_bytes"])
        (t,) = line["evaluation"]["tasks"]
        self.assertEqual(t["acc"], self.evaluated(self.path("out"))["two"]["acc"])
        self.assertEqual(t["acc_norm"], self.evaluated(self.path("out"))["two"]["acc_norm"])
        self.assertGreater(line["evaluation"]["kl_mean"], 0)

    def test_what_cannot_be_asked_is_refused_at_once(self):
        calib = ["--calib", self.text, "--calib-samples", "4", "--calib-len", "24", "--method",
                 "gptq"]
        good = next(iter(items(1)))
        for content, word in (
                ("", "no items"),
                (lines([good, dict(good, gold=3)]), "line 2: key 'gold' is 3"),
                (lines([good]).encode() + b'{"query": "\xff"}\n', "line 2: not valid JSON"),
                (lines([dict(good, query="cat sat " * 600)]), "line 1: an item of")):
            path = self.write("bad.jsonl", content)
            self.assertIn(word, self.fails(1, *self.command(*calib, "--check-tasks", path)))
            self.assertIn(word, self.fails(1, *self.command("--dry-run", "--check-tasks", path)))
        for code, args, word in (
                (1, ["--check-tasks", self.path("absent")], "absent"),
                (1, ["--check-tasks", self.folder], "nibble-test"),
                (2, ["--check-tasks", ","], "an empty name"),
                (2, ["--check-tasks-limit", "3"], "--check-tasks-limit needs --check-tasks"),
                (2, ["--check-tasks", self.two] * 21, "21 files"),
                (4, ["--check-tasks", self.two, "--memory", "50M"], "--check-tasks cannot be done")):
            self.assertIn(word, self.fails(code, *self.command(*calib, *args)))
        self.assertEqual(sorted(os.listdir(self.folder)),
                         ["bad.jsonl", "hf", "one.jsonl", "t.txt", "two.jsonl"])

    def test_a_tokenizer_is_needed(self):
        os.unlink(self.path("hf", "tokenizer.json"))
        self.assertIn("tokenizer", self.fails(1, *self.command("--check-tasks", self.two)))

    def test_a_plan_covers_it(self):
        (plain,) = lib.json_lines(self.ok(*self.command("--dry-run", "--json")))
        many = self.write("many.jsonl", lines(items(2000)))
        (dry,) = lib.json_lines(self.ok(*self.command("--dry-run", "--json", "--check-tasks", many,
                                                      "--check-tasks-limit", "0")))
        self.assertGreater(dry["seconds"], plain["seconds"])
        self.assertGreater(dry["memory_bytes"], plain["memory_bytes"])
        (real,) = lib.json_lines(self.ok(*self.command("--json", "--check-tasks", self.one)))
        self.assertEqual(real["memory_bytes"], dry["memory_bytes"])
        with open(lib.BINARY, "rb") as f:
            if b"__asan_init" not in f.read():
                self.assertLess(real["peak_rss_bytes"], dry["memory_bytes"])

    def test_cut_short_the_weights_are_the_same(self):
        many = self.write("many.jsonl", lines(items(6000)))
        tasks = ["--check-tasks", many, "--check-tasks-limit", "0"]
        (plain,) = lib.json_lines(self.ok(*self.command("--json", out="plain")))

        def cut(how, out):
            run = subprocess.Popen([lib.BINARY, *self.command(*tasks, out=out)],
                                   env=lib.environment(), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
            end = time.monotonic() + 60
            while time.monotonic() < end and run.poll() is None and not any(
                    os.path.isfile(self.path(d, "nibble.safetensors")) or
                    os.path.isfile(self.path(d, "model.safetensors"))
                    for d in os.listdir(self.folder) if d.startswith((out, "." + out))
                    and d != out):
                time.sleep(0.002)
            run.send_signal(how)
            _, err = run.communicate(timeout=120)
            return run.returncode, err.decode()

        code, err = cut(signal.SIGINT, "a")
        if code == 0:  # in the middle of the answers: the output stands
            self.assertEqual(self.report("a")["sha256"], plain["sha256"])
            e = self.report("a")["evaluation"]
            if "tasks_left_out" in e:
                self.assertEqual(e, {"tasks_left_out": "interrupted"})
                self.assertIn("no answers to the tasks: interrupted", err)
                self.assertIn("No answers to the tasks: interrupted",
                              self.ok("report", self.path("a"), "-o", "-"))
        else:
            self.assertEqual(code, 5)
        cut(signal.SIGKILL, "b")
        (line,) = lib.json_lines(self.ok(*self.command("--check-tasks", self.two, "--json",
                                                       "--force", out="b")))
        self.assertEqual(line["sha256"], plain["sha256"])
        self.assertEqual(self.report("b")["evaluation"]["tasks"][0]["n"], 7)


class Blocks(lib.Case):
    """Blocks of FP8 that the edge of a matrix cuts."""

    def test_what_other_programs_cannot_run_is_said(self):
        model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        command = ["quantize", model, "-o", self.path("out"), "--threads", "1", "--force",
                   "--scheme"]
        done = lib.nibble(*command, "FP8_BLOCK")
        word = ("14 matrices such as 'model.layers.0.self_attn.q_proj.weight' of 32 x 32: no whole "
                "blocks of 128 x 128; nibble runs the output, compressed-tensors and many versions of "
                "vLLM do not")
        self.assertEqual((done.code, done.err), (0, word + "\n"))
        with open(self.path("out", "nibble-report.json")) as f:
            self.assertIn(word, json.load(f)["notes"])
        self.assertIn("no whole blocks of 128", self.ok("report", self.path("out"), "-o", "-"))
        self.assertEqual(self.ok("run", self.path("out"), "the cat", "--max-tokens", "2",
                                 "--quiet") != "", True)
        for scheme in ("FP8", "FP8:tensor", "W4A16:g32"):
            self.assertEqual(lib.nibble(*command, scheme).err, "")
        whole = lib.write_hf(self.path("whole"), lib.TinyModel(
            n_layers=1, d_model=128, n_heads=2, n_kv_heads=2, d_ff=256), "bf16")
        done = lib.nibble("quantize", whole, "-o", self.path("out"), "--force", "--scheme",
                          "FP8_BLOCK")
        self.assertEqual((done.code, done.err), (0, ""))


if __name__ == "__main__":
    lib.main()
