"""--distill: what it records and says, that a kill changes nothing, and where it is refused."""

import json
import os
import shutil
import signal
import subprocess
import time

import lib

MODEL = lib.TinyModel(d_model=32, n_heads=2, n_kv_heads=2, d_ff=256)
TEXT = "It was the best of times, it was the worst of times. " * 30
STEPS = "6,batch=2,lr=0.02"


class Distill(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)

    def command(self, out, *args, scheme="W2A16:g32,asym", method="rtn", steps=STEPS):
        return ["quantize", self.model, "-o", self.path(out), "--scheme", scheme, "--method", method,
                "--calib", self.text, "--calib-len", "24", "--calib-samples", "9", "--distill", steps,
                *args]

    def report(self, out):
        name = out + ".nibble-report.json" if out.endswith(".gguf") else out + "/nibble-report.json"
        with open(self.path(name)) as f:
            return json.load(f)

    def test_what_it_says_and_records(self):
        said = self.ok(*self.command("out"))
        report = self.report("out")
        done = report["calibration"]["distilled"]
        self.assertEqual((done["steps"], done["wanted"], done["kept"]), (6, 6, True))
        self.assertLess(done["kl_after"], done["kl_before"])
        self.assertIn("  distilled: 6 steps, held-out KL %.4g -> %.4g\n"
                      % (done["kl_before"], done["kl_after"]), said)
        self.assertEqual(report["choices"]["distill"], "distill:batch=2,lr=0.02,steps=6")
        page = self.ok("report", self.path("out"), "-o", "-")
        self.assertIn("6 steps, KL of held-out text", page)
        self.ok(*self.command("plain", "--check", "0", steps="1,lr=0"))
        self.assertIn("scales stay as they were", self.ok("report", self.path("plain"), "-o", "-"))
        self.assertNotEqual(self.report("plain")["sha256"], report["sha256"])

    def test_threads_and_instruction_sets(self):
        made = []
        for i, more in enumerate((("-t", "1"), ("-t", "2", "--isa", "avx2"),
                                  ("-t", "3", "--isa", "scalar"))):
            self.ok(*self.command("o%d" % i, "--check", "0", *more))
            made.append(self.report("o%d" % i)["sha256"])
        self.assertEqual(len(set(made)), 1)

    def test_formats_and_layouts(self):
        for out, scheme, more in (("g", "W4A16:g32,asym", ("--to", "gptq_v2")),
                                  ("a", "W4A16:g32,asym", ("--to", "awq")),
                                  ("q.gguf", "Q4_1", ()), ("i.gguf", "IQ4_NL", ())):
            self.ok(*self.command(out, "--check", "0", *more, scheme=scheme))
            report = self.report(out)
            self.assertTrue(report["calibration"]["distilled"]["kept"], out)
            self.ok("eval", self.path(out), "--text", self.text)
            self.ok(*self.command("plain-" + out, "--check", "0", *more, scheme=scheme,
                                  steps="1,lr=0"))
            self.assertNotEqual(self.report("plain-" + out)["sha256"], report["sha256"])

    def test_a_mixture_is_distilled_at_the_end(self):
        args = self.command("mix")
        i = args.index("--scheme")
        args[i:i + 2] = ["--bpw", "3.5", "--candidates", "W2A16:g32,asym;W4A16:g32"]
        self.ok(*args)
        self.assertIn("kept", self.report("mix")["calibration"]["distilled"])

    def test_killed_it_goes_on_to_the_same_bytes(self):
        steps = "40,batch=2,lr=0.02"
        self.ok(*self.command("out", "--check", "0", steps=steps))
        want = self.report("out")["sha256"]
        shutil.rmtree(self.path("out"))
        n_cut = 0
        for moment in 1, 17, 39:
            child = subprocess.Popen([lib.BINARY, *self.command("out", "--check", "0", steps=steps)],
                                     env=lib.environment(), stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
            end = time.monotonic() + 120
            while child.poll() is None and time.monotonic() < end:
                if self.n_steps() >= moment:
                    child.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.0005)
            child.communicate(timeout=120)
            if os.path.exists(self.path("out")):
                self.assertEqual(self.report("out")["sha256"], want)
                shutil.rmtree(self.path("out"))
            else:
                n_cut += 1
        self.assertGreater(n_cut, 0)
        self.ok(*self.command("out", "--check", "0", "--force", steps=steps))
        self.assertEqual(self.report("out")["sha256"], want)
        self.assertFalse(os.path.exists(self.path("out.nibble-work")))

    def n_steps(self):
        try:
            with open(self.path("out.nibble-work", "state.json")) as f:
                return json.load(f)["state"]["distill"]["steps"]
        except (OSError, ValueError, KeyError):
            return -1

    def test_the_plan_counts_it(self):
        plans = [json.loads(self.ok(*self.command("x", "--dry-run", "--json", steps=steps)))
                 for steps in ("1,len=8", "64,batch=8")]
        self.assertGreater(plans[1]["calibration"]["disk_bytes"],
                           plans[0]["calibration"]["disk_bytes"])
        self.assertIn("about", self.fails(4, *self.command("x", "--memory", "1M")))

    def test_where_it_cannot_be_done_it_is_refused(self):
        for part, steps in (("option steps of method distill is a number from 1 to 100000", "0"),
                            ("option steps of method distill is a number", "many"),
                            ("option steps of method distill is a number", ""),
                            ("option lr of method distill is a number", "4,lr=-1"),
                            ("has no option 'rate'", "4,rate=1"), ("given twice", "4,steps=5"),
                            ("end with a comma", "4,"), ("is no NAME", "4,,lr=0.1"),
                            ("a number of steps", "4," + "x" * 300)):
            self.assertIn(part, self.fails(2, *self.command("x", steps=steps)))
        for part, args, how in (("transform awq changes them", ("--transform", "awq"), {}),
                                ("this scheme quantizes them", (), {"scheme": "W8A8"}),
                                ("this scheme quantizes them", (), {"scheme": "FP8"}),
                                ("no layer here gets such scales", (), {"scheme": "NF4:g32"})):
            self.assertIn(part, self.fails(1, *self.command("x", *args, **how)))
        bare = ["quantize", self.model, "-o", self.path("x"), "--scheme", "W4A16:g32", "--distill", "2"]
        self.assertIn("--calib FILE", self.fails(2, *bare))
        self.assertFalse(os.path.exists(self.path("x")))
        self.assertFalse(os.path.exists(self.path("x.nibble-work")))


if __name__ == "__main__":
    lib.main()
