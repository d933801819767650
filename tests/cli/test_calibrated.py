"""Quantizing with data, from the outside: killed at any moment it goes on to the same bytes, it stays
under the memory it was given, and what cannot end well is refused before the work."""

import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import time

import lib

MODEL = lib.TinyModel(n_layers=4, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64)
WORDS = "the cat sat on the mat, and 12 dogs looked on; nobody knew why it is odd".split(" ")
TEXT = " ".join(WORDS[i * i % len(WORDS)] + "ab"[i % 2] for i in range(700))
SCHEME = ["--scheme", "W4A16:g32"]
SET = ["--calib-samples", "4", "--calib-len", "32", "--check", "0"]


def sanitized():
    """Whether the binary keeps shadow memory, which limits on memory know nothing of."""
    with open(lib.BINARY, "rb") as f:
        return b"__asan_init" in f.read()


def digest(folder):
    """The SHA-256 of a folder, as src/quant/write/digest.h defines it."""
    lines = ""
    for name in sorted(os.listdir(folder)):
        if name.endswith((".safetensors", ".json", ".jinja")) and not name.startswith(
                ("nibble-report", ".")):
            with open(os.path.join(folder, name), "rb") as f:
                lines += "%s  %s\n" % (hashlib.sha256(f.read()).hexdigest(), name)
    return hashlib.sha256(lines.encode()).hexdigest()


class Calibrated(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)
        self.out, self.work = self.path("out"), self.path("out.nibble-work")

    def command(self, *args, method="gptq", text=None, out=None):
        threads = [] if "--threads" in args else ["--threads", "1"]
        return ["quantize", self.model, "-o", out or self.out, *SCHEME, "--method", method, "--calib",
                text or self.text, *SET, *threads, *args]

    def run_json(self, *args, **how):
        (line,) = lib.json_lines(self.ok(*self.command("--json", *args, **how)))
        return line

    def report(self):
        with open(os.path.join(self.out, "nibble-report.json")) as f:
            return json.load(f)

    def whole(self, *args, **how):
        """The digest of a run that nobody disturbs; its output is gone again."""
        line = self.run_json(*args, **how)
        self.assertEqual(line["sha256"], digest(self.out))
        self.assertFalse(os.path.exists(self.work))
        shutil.rmtree(self.out)
        return line["sha256"]

    def kill_after(self, n_blocks, *args, how=signal.SIGKILL, delay=0.0, **more):
        """Starts a run, and kills it once its state tells of so many blocks. True if it was cut."""
        child = subprocess.Popen([lib.BINARY, *self.command(*args, **more)], env=lib.environment(),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < end:
            if self.n_blocks() >= n_blocks:
                time.sleep(delay)
                child.send_signal(how)
                break
            time.sleep(0.0005)
        self.errors = child.communicate(timeout=120)[1].decode()
        self.code = child.returncode
        return not os.path.exists(self.out)

    def n_blocks(self):
        try:
            with open(os.path.join(self.work, "state.json")) as f:
                return json.load(f)["state"]["next_layer"]
        except (OSError, ValueError, KeyError):
            return -1

    # ---- killed ----

    def test_killed_it_goes_on_to_the_same_bytes(self):
        for method, args, moments in (("gptq", [], (0, 1, 3)), ("qronos", [], (2,)),
                                      ("gptq", ["--transform", "awq"], (2,)),
                                      ("autoround:iters=4,batch=2,len=32", [], (2,))):
            want = self.whole(*args, method=method)
            rng, n_cut, resumed = random.Random(method), 0, 0
            for n_blocks in moments:
                cut = self.kill_after(n_blocks, *args, method=method, delay=rng.uniform(0, 0.01))
                n_cut += cut
                if cut:
                    line = self.run_json(*args, method=method)
                    self.assertEqual(line["sha256"], want)
                    resumed += self.report()["calibration"]["resumed_blocks"]
                    self.assertFalse(os.path.exists(self.work))
                self.assertEqual(digest(self.out), want)
                shutil.rmtree(self.out)
            self.assertGreater(n_cut, 0, method)
            self.assertGreater(resumed, 0, method)

    def test_killed_again_and_again(self):
        want = self.whole()
        n_cut = 0
        for _ in range(10):
            if not self.kill_after(self.n_blocks() + 1):
                break
            n_cut += 1
        else:
            self.ok(*self.command())
        self.assertGreater(n_cut, 1)
        self.assertEqual(digest(self.out), want)
        if os.path.exists(self.work):  # killed between the output and the end
            self.ok(*self.command("--force"))
            self.assertEqual(digest(self.out), want)
        self.assertEqual(sorted(os.listdir(self.folder)), ["hf", "out", "t.txt"])

    def test_interrupted_it_says_how_to_go_on(self):
        want = self.whole()
        for how in (signal.SIGINT, signal.SIGTERM):
            self.assertTrue(self.kill_after(1, how=how))
            self.assertEqual(self.code, 5, self.errors)
            self.assertIn("the same command goes on from what is in " + self.work, self.errors)
            done = lib.nibble(*self.command())
            self.assertEqual(done.code, 0, done.err)
            self.assertRegex(done.err, r"\d of 4 blocks were there, from an earlier run")
            self.assertEqual(digest(self.out), want)
            shutil.rmtree(self.out)

    # ---- what is not gone on from ----

    def test_another_run_is_not_gone_on_from(self):
        other_text = self.write("u.txt", TEXT[::-1])
        for changed in ("text", "method", "fresh", "model"):
            self.assertTrue(self.kill_after(2))
            how, args = {}, []
            if changed == "text":
                how["text"] = other_text
            elif changed == "method":
                how["method"] = "gptq:act-order"
            elif changed == "fresh":
                args = ["--fresh"]
            else:
                raw = bytearray(lib.hf_files(MODEL, "bf16")["model.safetensors"])
                raw[-400] ^= 1
                self.write("hf/model.safetensors", bytes(raw))
            done = lib.nibble(*self.command(*args, **how))
            self.assertEqual(done.code, 0, done.err)
            self.assertEqual(self.report()["calibration"]["resumed_blocks"], 0, changed)
            told = "is of another model, text or recipe: it was not used" in done.err
            self.assertEqual(told, changed != "fresh", done.err)
            got = digest(self.out)
            shutil.rmtree(self.out)
            self.assertEqual(got, self.whole(**how))

    def test_damage_is_noticed(self):
        want = self.whole()
        for damage in ("state", "weight", "missing", "states of tokens", "junk"):
            self.assertTrue(self.kill_after(2))
            self.assertGreaterEqual(self.n_blocks(), 2)
            weights = sorted(n for n in os.listdir(self.work) if n.startswith("weight-"))
            name = {"state": "state.json", "junk": "state.json"}.get(damage, weights[0])
            for name in ("x0-even.bin", "x0-odd.bin") if damage == "states of tokens" else (name,):
                path = os.path.join(self.work, name)
                if damage == "missing":
                    os.remove(path)
                elif damage == "junk":
                    self.write(path, b"\xff{[" * 1000)
                else:
                    os.truncate(path, os.path.getsize(path) - 7)
            done = lib.nibble(*self.command())
            self.assertEqual(done.code, 0, done.err)
            self.assertIn("is damaged: it was not used", done.err)
            self.assertEqual(digest(self.out), want)
            shutil.rmtree(self.out)

    # ---- what is refused before the work ----

    def test_a_second_one_is_refused(self):
        os.mkdir(self.work)
        with open(os.path.join(self.work, "lock"), "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            self.assertIn("another process works in this folder", self.fails(3, *self.command()))
        self.ok(*self.command())

    def test_outputs_that_cannot_be_written(self):
        self.write("home/notes.txt", "mine")
        self.write("there/config.json", "{}")
        for code, part, args in (
                (2, "--force", self.command(out=self.path("there"))),
                (2, "home", self.command("--force", out=self.path("home"))),
                (3, "no/such", self.command(out=self.path("no", "such"))),
                (3, "t.txt", self.command(out=self.path("t.txt", "o")))):
            before = sorted(os.listdir(self.folder))
            self.assertIn(part, self.fails(code, *args))
            self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_texts_that_are_too_little(self):
        self.assertIn("empty", self.fails(1, *self.command(text=self.write("e.txt", ""))))
        self.assertFalse(os.path.exists(self.work))
        done = lib.nibble(*self.command(text=self.write("one.txt", "a")))
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("1 sequence, 1 token", done.err)
        *_, summary = lib.json_lines(self.ok("inspect", self.out, "--json"))
        self.assertEqual(summary["nonfinite_tensors"], 0)

    def test_too_little_memory(self):
        line = self.fails(4, *self.command("--memory", "1M"))
        self.assertRegex(line, r"needs about \d+ MB here, and --memory is 1 MB")
        self.fails(4, *self.command("--memory", "1M", "--dry-run"))
        self.assertFalse(os.path.exists(self.work))

    def test_what_it_will_take(self):
        for method, args in (("gptq", []), ("rtn", ["--transform", "awq"]),
                             ("gptq", ["--transform", "awq:grid=3"]),
                             ("rtn:search", ["--transform", "smoothquant"])):
            line = self.run_json("--dry-run", *args, method=method)
            self.assertTrue(0 < line["seconds"] < 3600, line)
            self.assertGreater(line["memory_bytes"], 1 << 20)
            self.assertEqual(sorted(os.listdir(self.folder)), ["hf", "t.txt"])

    # ---- the disk is full ----

    def test_a_disk_that_is_full_at_the_end(self):
        want = self.whole()

        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))

        line = self.fails(3, *self.command(), preexec_fn=small_files)
        self.assertIn("model.safetensors", line)
        self.assertEqual(sorted(os.listdir(self.folder)), ["hf", "out.nibble-work", "t.txt"])
        done = lib.nibble(*self.command())
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("4 of 4 blocks were there", done.err)
        self.assertEqual(digest(self.out), want)
        self.assertFalse(os.path.exists(self.work))

        def no_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

        self.fails(3, *self.command("--force"), preexec_fn=no_files)
        self.assertEqual(digest(self.out), want)

    # ---- threads, instruction sets ----

    def test_threads_and_instruction_sets(self):
        seen = set()
        for threads, isa in (("1", "scalar"), ("2", "avx2"), ("3", "auto")):
            done = lib.nibble(*self.command("--threads", threads, "--isa", isa, "--transform", "awq"))
            if done.code != 0 and isa == "avx2":
                continue  # another machine
            self.assertEqual(done.code, 0, done.err)
            seen.add(digest(self.out))
            shutil.rmtree(self.out)
        self.assertEqual(len(seen), 1)


class Memory(lib.Case):
    LAYERS, D, FF = 54, 256, 512

    def write_model(self, n_layers=LAYERS):
        """A model of 140 MB, or of fewer layers, and a vocabulary of nothing much; every matrix is a stretch of one row
        of random numbers."""
        like = lib.TinyModel(n_layers=1, d_model=self.D, d_ff=self.FF, n_heads=4, n_kv_heads=4)
        rng = random.Random(3)
        numbers = lib.f32_bytes([rng.gauss(0, 0.06) for _ in range(200000)]) * 3
        header, pieces, at = {}, [], 0
        for name, (shape, values) in like.tensors.items():
            for layer in range(n_layers if ".layers." in name else 1):
                n = 4 * len(values)
                start = 4 * rng.randrange(150000)
                raw = lib.f32_bytes([1.0] * len(values)) if "norm" in name else \
                    numbers[start:start + n]
                header[name.replace(".0.", ".%d." % layer)] = {
                    "dtype": "F32", "shape": list(shape), "data_offsets": [at, at + n]}
                pieces.append(raw)
                at += n
        files = lib.hf_files(like, "f32")
        config = json.loads(files["config.json"])
        config["num_hidden_layers"] = n_layers
        files["config.json"] = json.dumps(config).encode()
        for name, content in files.items():
            if name != "model.safetensors":
                self.write("hf/" + name, content)
        text = json.dumps(header).encode()
        with open(self.path("hf", "model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.writelines(pieces)
        return self.path("hf")

    LIMIT = 64 << 20

    def command(self, model, *args):
        return ["quantize", model, "-o", self.path("out"), *SCHEME, *args, "--calib",
                self.write("t.txt", TEXT), *SET, "--memory", str(self.LIMIT), "--threads", "1",
                "--json"]

    @classmethod
    def little_memory(cls):
        resource.setrlimit(resource.RLIMIT_DATA, (cls.LIMIT, cls.LIMIT))

    def test_it_stays_below_the_limit(self):
        """Weights of more than twice the limit, which the system enforces, too. Blocks that a
        transform changes have no room for all of their weights as floats under it."""
        if sanitized():
            self.skipTest("shadow memory is not counted")
        model = self.write_model()
        self.assertGreater(os.path.getsize(self.path("hf", "model.safetensors")), 2 * self.LIMIT)
        for how in (["--method", "gptq:shrink=0.1,fit=absmax,polish=0"],
                    ["--method", "rtn", "--transform", "awq:grid=1,clip=off"]):
            (line,) = lib.json_lines(self.ok(*self.command(model, *how),
                                             preexec_fn=self.little_memory))
            self.assertLess(line["peak_rss_bytes"], self.LIMIT)
            self.assertEqual(line["n_quantized"], 7 * self.LAYERS)
            self.assertEqual(line["sha256"], digest(self.path("out")))
            shutil.rmtree(self.path("out"))

    def test_killed_under_the_limit_it_goes_on_to_the_same_bytes(self):
        command = self.command(self.write_model(6), "--method", "rtn", "--transform", "awq:grid=1")
        (line,) = lib.json_lines(self.ok(*command))
        shutil.rmtree(self.path("out"))
        state = self.path("out.nibble-work", "state.json")
        child = subprocess.Popen([lib.BINARY, *command], env=lib.environment(),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < end:
            try:
                with open(state) as f:
                    if json.load(f)["state"]["next_layer"] >= 2:
                        break
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.0005)
        time.sleep(0.003)
        child.kill()
        child.wait(timeout=120)
        self.assertTrue(os.path.exists(state))
        done = lib.nibble(*command)
        self.assertEqual(done.code, 0, done.err)
        self.assertRegex(done.err, r"\d of 6 blocks were there")
        (again,) = lib.json_lines(done.out)
        self.assertEqual(again["sha256"], line["sha256"])


if __name__ == "__main__":
    lib.main()
