"""--guide: what it records, what it changes, and where it is refused."""

import hashlib
import json

import lib

MODEL = lib.TinyModel()
TEXT = "It was the best of times, it was the worst of times. " * 12


class Guide(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.text = self.write("t.txt", TEXT)

    def command(self, out, *args):
        return ("quantize", self.model, "-o", self.path(out), "--scheme", "W4A16:g32", *args)

    def made(self, out, *args):
        """The hash of the weights, and what is recorded of the calibration."""
        self.ok(*self.command(out, "--calib", self.text, "--calib-len", "32", "--calib-samples",
                              "4", *args))
        with open(self.path(out, "model.safetensors"), "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        with open(self.path(out, "nibble-report.json")) as f:
            return digest, json.load(f)["calibration"]

    def test_what_is_recorded(self):
        plain, plain_report = self.made("plain", "--method", "gptq")
        guided, report = self.made("guided", "--method", "gptq", "--guide")
        self.assertFalse(plain_report["guided"])
        self.assertTrue(report["guided"])
        self.assertNotEqual(plain, guided)
        self.assertFalse(any("predicted_kl" in one for one in plain_report["layers"]))
        for one in report["layers"]:
            self.assertGreater(one["predicted_kl"], 0, one)
            self.assertLess(one["predicted_kl"], 10, one)

    def test_rows_that_make_up_for_each_other(self):
        guided, _ = self.made("guided", "--method", "qronos", "--guide")
        made = [self.made("o%d" % i, "--method", "qronos", "--guide-outputs", *more)[0]
                for i, more in enumerate(((), ("-t", "1"), ("-t", "3", "--isa", "scalar")))]
        self.assertEqual(len(set(made)), 1)
        self.assertNotEqual(made[0], guided)
        for method in "gptaq", "rtn:search", "autoround:iters=2":
            said = self.fails(2, *self.command("no", "--calib", self.text, "--calib-len", "32",
                                               "--method", method, "--guide-outputs"))
            self.assertIn("do not make up for each other's errors", said)

    def test_labels_follow_the_seed(self):
        one, two, three = (self.made("s%d" % i, "--method", "rtn:search", "--guide", "--seed",
                                     seed)[0] for i, seed in enumerate("557"))
        self.assertEqual(one, two)
        self.assertNotEqual(one, three)

    def test_the_plan_says_what_it_takes(self):
        plans = [json.loads(self.ok(*self.command("x", "--calib", self.text, "--method", "gptq",
                                                  "--dry-run", "--json", *more)))["calibration"]
                 for more in ((), ("--guide",))]
        self.assertEqual([p["guided"] for p in plans], [False, True])
        self.assertGreater(plans[1]["disk_bytes"], plans[0]["disk_bytes"])

    def test_where_it_would_do_nothing_it_is_refused(self):
        calib = ("--calib", self.text)
        for part, args in (
                ("method rtn uses none", ("--method", "rtn")),
                ("method rtn uses none here: --calib names one", ("--method", "rtn:search")),
                ("method rtn uses none", ("--method", "rtn", *calib)),
                ("method hqq uses none", ("--method", "hqq")),
                ("method autoround makes no sums", ("--method", "autoround:iters=1", *calib))):
            self.assertIn(part, self.fails(2, *self.command("x", "--guide", *args)))


if __name__ == "__main__":
    lib.main()
