"""Outputs stand whole and with their reports, or not at all; and the command that made one knows it."""

import json
import os
import resource
import subprocess

import lib

MODEL = lib.TinyModel()
TEXT = " ".join(str(i * i % 97) for i in range(900))


class Standing(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)

    def command(self, out, *args):
        return ("quantize", self.model, "-o", self.path(out), "--scheme", "W4A16:g32", "--method",
                "gptq:shrink=0.5,polish=0", "--calib", self.text, "--calib-samples", "4",
                "--calib-len", "32", *args)

    def leave(self, *names):
        """What a process that is killed while it clears away leaves."""
        for name in names:
            os.makedirs(self.path(name), exist_ok=True)
            for file in ("lock", "state.json", "x-in.bin"):
                with open(self.path(name, file), "w"):
                    pass

    def listing(self):
        return sorted(os.listdir(self.folder))

    def test_a_command_knows_what_it_made(self):
        for out in ("out", "out.gguf"):
            args = list(self.command(out))
            if out.endswith("gguf"):
                args[args.index("W4A16:g32")] = "Q8_0"
            self.ok(*args)
            listing = self.listing()
            self.assertIn("exists already", self.fails(2, *args))  # nothing is left: as ever
            self.leave(out + ".nibble-work", out + ".nibble-mix")
            r = lib.nibble(*args)
            self.assertEqual(r.code, 0, r.err)
            self.assertIn("this command has made it already", r.err)
            self.assertEqual(self.listing(), listing)

    def test_another_command_does_not_take_it_for_its_own(self):
        self.ok(*self.command("out"))
        self.leave("out.nibble-work")
        listing = self.listing()
        other = self.write("o.txt", TEXT + " 1")
        for more in (("--seed", "1"), ("--guide",), ("--transform", "awq"), ("--calib-flow", "original"),
                     ("--tune", "autoround:iters=1"), ("--calib-pack", "none"), ("--nonfinite", "zero"),
                     ("--calib", other)):
            self.assertIn("exists already", self.fails(2, *self.command("out", *more)), more)
        with open(self.path("out", "model.safetensors"), "r+b") as f:  # not what was written
            f.seek(-1, os.SEEK_END)
            f.write(b"\x55")
        self.assertIn("exists already", self.fails(2, *self.command("out")))
        self.assertEqual(self.listing(), sorted(listing + ["o.txt"]))

    def test_no_output_without_its_report(self):
        """A folder where the report of a GGUF would be."""
        os.makedirs(self.path("g.gguf.nibble-report.json", "x"))
        err = self.fails(2, "quantize", self.model, "-o", self.path("g.gguf"), "--scheme", "Q8_0")
        self.assertIn("g.gguf.nibble-report.json", err)
        self.assertEqual(self.listing(), ["g.gguf.nibble-report.json", "hf", "t.txt"])

    def test_a_full_disk_says_what_stays(self):
        """Files end at a size that the working folder's reach."""
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        args = self.command("out")
        r = subprocess.run([lib.BINARY, *args], preexec_fn=limit,
                           capture_output=True, text=True, timeout=300)
        self.assertEqual(r.returncode, 3, r.stderr)
        self.assertIn("stays in %s" % self.path("out.nibble-work"), r.stderr)
        self.assertFalse(os.path.exists(self.path("out")))
        self.ok(*args)
        self.assertEqual(self.listing(), ["hf", "out", "t.txt"])

    def test_choices_are_recorded(self):
        self.ok(*self.command("out", "--seed", "7", "--guide", "--transform", "awq", "--tune",
                              "autoround:iters=2", "--calib-sample", "random", "--calib-pack", "all",
                              "--calib-split", "\n"))
        with open(self.path("out", "nibble-report.json")) as f:
            report = json.load(f)
        wanted = {
            "to": "hf", "rules": "* = W4A16:g32 method gptq:polish=0,shrink=0.5\n",
            "method": "gptq:polish=0,shrink=0.5", "tune": "autoround:iters=2", "transform": "awq",
            "guide": True, "flow": "auto", "observer": None, "seed": 7, "nonfinite": "refuse",
            "calib": {"samples": 4, "length": 32, "pack": "all", "sample": "random",
                      "chat": "template", "field": None, "split": "\n"}}
        self.assertEqual({key: report["choices"].get(key) for key in wanted}, wanted)
        self.assertEqual(len(report["model_sha256"]), 64)
        self.assertLess(report["linear_bpw"], report["bpw"])


if __name__ == "__main__":
    lib.main()
