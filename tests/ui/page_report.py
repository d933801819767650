"""The report, in a browser."""

import json

import page


REPORT = {
    "nibble": "0.1.0",
    "source": "original",
    "scheme": "W4A16:g32",
    "method": "gptq",
    "container": "hf",
    "bytes": 91000000,
    "source_bytes": 269060552,
    "bpw": 4.5,
    "n_params": 134515008,
    "seconds": 12.25,
    "n_quantized": 210,
    "n_tensors": 272,
    "notes": ["group size 32: <b>chosen</b>"],
    "reasons": [{"layers": "*.down_proj", "scheme": "W8A16", "because": "KL"}],
    "calibration": {
        "tokens": 4096,
        "score": {"warnings": ["too <few> tokens"]},
        "layers": [
            {
                "name": "model.layers.%d.%s_proj.weight" % (i, k),
                "format": "int4",
                "params": 1024,
                "bytes": 576,
                "loss": 0.001 * (i + 1) * (j + 1),
                "held_out_loss": 0.0012 * (i + 1) * (j + 1),
            }
            for i in range(4)
            for j, k in enumerate(
                [
                    "self_attn.q",
                    "self_attn.k",
                    "self_attn.v",
                    "self_attn.o",
                    "mlp.gate",
                    "mlp.up",
                    "mlp.down",
                ]
            )
        ],
    },
    "evaluation": {
        "n_tokens": 2047,
        "perplexity": 21.5,
        "base_perplexity": 20.5,
        "kl_mean": 0.0512,
        "top1": 0.9,
        "tasks": [
            {
                "task": "arc",
                "n": 100,
                "acc": 0.4,
                "acc_se": 0.049,
                "base_acc": 0.43,
                "acc_norm": 0.41,
                "base_acc_norm": 0.42,
                "flips": 7,
            }
        ],
        "layers": [{"layer": i, "kl_mean": 0.01 * (i + 1)} for i in range(4)],
    },
}



class Report(page.Page):
    def test_tables_and_bars(self):
        self.mock.report = REPORT
        self.go("report")
        self.page.until("all('#report figure').length === 3")
        text = self.page.text("#report")
        for piece in (
            "W4A16:g32",
            "gptq",
            "86.8 MiB (of 256.6 MiB)",
            "0.0512",
            "21.5",
            "90 %",
            "40 % \u00b1 4.9 %",
            "group size 32: <b>chosen</b>",
            "too <few> tokens",
            "*.down_proj: W8A16, because KL",
        ):
            self.assertIn(piece, text)
        self.assertEqual(self.page.run("all('#report details tbody tr').length"), 28)
        self.shoot("report")

    def test_none(self):
        self.allowed = [r"status of 404"]
        self.go("report")
        self.page.until("one('#report').innerText.startsWith('This model came without a report')")

    def test_every_member_of_every_type(self):
        """A report is a file: any member may be anything."""
        odd = [
            None,
            True,
            -1,
            1e308,
            "<img src=x onerror='window.hacked=1'>",
            [],
            {},
            [None, 1, "x", [], {"layer": "x", "name": 3, "task": []}],
            "x" * 10000,
        ]

        def planted(o):
            for key, value in list(o.items()):
                for v in odd:
                    yield {**o, key: v}
                if isinstance(value, dict):
                    for inner in planted(value):
                        yield {**o, key: inner}
                if isinstance(value, list) and value and isinstance(value[0], dict):
                    for inner in planted(value[0]):
                        yield {**o, key: [inner, *value[1:]]}

        self.mock.report = REPORT
        self.go("report")
        reports = [*odd, *planted(REPORT)]
        self.assertGreater(len(reports), 300)
        # One at a time would be a fetch each; the page's own function is asked by way of its fetch.
        for report in reports[::7] + [{**REPORT, "__proto__": {"x": 1}}]:
            self.mock.report = report if report is not None else {}
            self.page.run("location.hash = '#chat'")
            self.page.call("Page.reload")
            self.page.until("one('#state')?.textContent === 'connected'")
            self.page.run("location.hash = '#report'")
            self.page.until("!one('#report').innerText.startsWith('Not read yet')")
            self.assertNotIn("could not be read", self.page.text("#report"), json.dumps(report)[:200])
