"""nibble report: the same rows as text, as Markdown and as a page."""

import html.parser
import json
import os

import lib

EVAL = [
    {"name": "original", "file_bytes": 269060552, "bpw": 16.0, "perplexity": 20.7323,
     "perplexity_se": 0.31, "kl_mean": 0, "top1": 1.0, "compute": "f"},
    {"name": "W8A16", "file_bytes": 135000000, "bpw": 8.1, "perplexity": 20.76,
     "perplexity_se": 0.31, "kl_mean": 0.00312, "top1": 0.966, "compute": "i16"},
]
BENCH = [{"name": "W8A16", "prefill_tok_s": 1611.12, "decode_tok_s": 135.2,
          "peak_rss_bytes": 190000000}]

TEXT = """\
name      size (MB)  bits/weight      perplexity  KL mean (nat)  top-1 (%)  prefill (tok/s)  \
decode (tok/s)  peak memory (MB)  compute
original      269.1        16.00  20.732 ± 0.310              0     100.00                   \
                                  f
W8A16         135.0         8.10  20.760 ± 0.310        0.00312      96.60           1611.1  \
         135.2             190.0  i16
"""


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.rows = [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells = []
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag == "tr":
            self.rows.append(self.cells)
            self.cells = None

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Report(lib.Case):
    def setUp(self):
        super().setUp()
        self.eval = self.write("eval.jsonl", lines(EVAL))
        self.bench = self.write("bench.jsonl", lines(BENCH))

    def test_text_word_for_word(self):
        self.assertEqual(self.ok("report", self.eval, self.bench), TEXT)
        self.assertEqual(self.ok("report", "-", stdin=lines(EVAL + BENCH).encode()), TEXT)

    def test_markdown(self):
        out = self.ok("report", self.eval, self.bench, "--markdown").splitlines()
        self.assertEqual(len(out), 4)
        self.assertEqual({line.count("|") for line in out}, {11})
        self.assertTrue(out[3].startswith("| W8A16 | 135.0 | 8.10 | 20.760 ± 0.310 | 0.00312 |"))

    def test_page(self):
        path = self.path("page.html")
        done = lib.nibble("report", self.eval, self.bench, "-o", path, "--title", "A <title>")
        self.assertEqual((done.code, done.out, done.err), (0, "", "wrote %s (2 rows)\n" % path))
        with open(path, encoding="utf-8") as f:
            text = f.read()
        page = Page(text)
        self.assertEqual(page.rows[1][:5], ["original", "269.1", "16.00", "20.732 ± 0.310", "0"])
        self.assertEqual(page.rows[2][6:8], ["1611.1", "135.2"])
        self.assertIn("<title>A &lt;title&gt;</title>", text)
        self.assertEqual([t for t, _ in page.tags].count("svg"), 3)
        for tag, attributes in page.tags:
            self.assertNotIn(tag, ("script", "link", "img", "iframe"))
            self.assertFalse({"src", "href", "onload", "onclick"} & set(attributes))
            if tag == "svg":
                self.assertEqual(attributes["role"], "img")
                self.assertTrue(attributes["aria-label"])
        self.assertEqual(self.ok("report", self.eval, self.bench, "-o", "-", "--title", "A <title>"),
                         text)

    def test_an_existing_page_is_kept_without_force(self):
        path = self.write("page.html", "precious")
        self.assertIn("--force", self.fails(2, "report", self.eval, "-o", path))
        with open(path) as f:
            self.assertEqual(f.read(), "precious")
        self.assertEqual(self.ok("report", self.eval, "-o", path, "--force", "--quiet"), "")
        self.assertGreater(os.path.getsize(path), 1000)
        self.fails(2, "report", self.eval, "-o", self.folder)
        self.fails(3, "report", self.eval, "-o", self.path("absent", "page.html"))

    def test_json_says_what_was_written(self):
        path = self.path("page.html")
        out = json.loads(self.ok("report", self.eval, "-o", path, "--json"))
        self.assertEqual(out, {"path": path, "rows": 2, "bytes": os.path.getsize(path)})
        self.fails(2, "report", self.eval, "--json")
        self.fails(2, "report", self.eval, "-o", "-", "--json")
        self.fails(2, "report", self.eval, "-o", "-", "--markdown")

    def test_bad_results(self):
        for content, where in (("", "no results"), ("\n\n", "no results"), ("x", "bad:1: "),
                               ('{"name":"a"}\n{"name":3}\n', "bad:2: "),
                               ('{"name":"a","bpw":"x"}', "bad:1: ")):
            path = self.write("bad", content)
            self.assertIn(where, self.fails(1, "report", path))
            self.fails(1, "report", path, "-o", self.path("page.html"))
            self.assertFalse(os.path.exists(self.path("page.html")))
        self.fails(1, "report", self.path("absent"))
        self.fails(1, "report", self.folder)
        self.fails(4, "report", self.write("many", lines({"name": str(i)} for i in range(1001))))

    def test_hostile_names_stay_text(self):
        name = "\x1b[31m</title><script>alert(1)</script>|\n`x`"
        path = self.write("bad", lines([dict(EVAL[0], name=name)]))
        for args in ([], ["--markdown"], ["-o", "-"]):
            out = self.ok("report", path, *args)
            self.assertNotIn("\x1b", out)
            if args:
                self.assertNotIn("<script", out.replace("\\<", ""))
        self.assertEqual(len(self.ok("report", path).splitlines()), 2)
        self.assertEqual(len(self.ok("report", path, "--markdown").splitlines()), 3)

    def quantized(self, *args, out="out"):
        """A tiny model quantized with data; its report."""
        model = lib.write_hf(self.path("hf"), lib.TinyModel(n_layers=2), "bf16")
        text = self.write("t.txt", "the cat sat on the mat " * 60)
        out = self.path(out)
        self.ok("quantize", model, "-o", out, "--method", "gptq", "--calib", text, "--calib-samples",
                "4", "--calib-len", "24", "--threads", "1", "--quiet", "--force", *args)
        beside = out + ".nibble-report.json" if out.endswith(".gguf") else \
            os.path.join(out, "nibble-report.json")
        with open(beside) as f:
            return out, json.load(f)

    def test_quantized_models_are_measured_and_shown(self):
        out, report = self.quantized("--scheme", "W4A16:g32")
        e = report["evaluation"]
        self.assertEqual((e["n_sequences"], e["n_windows"], e["n_tokens"]), (1, 1, 23))
        self.assertGreater(e["kl_mean"], 0)
        self.assertLess(e["noise_floor"]["kl_mean"], e["kl_mean"])
        self.assertEqual([layer["layer"] for layer in e["layers"]], [0, 1])
        for layer in e["layers"]:
            self.assertGreater(layer["kl_mean"], 0)
        self.assertLessEqual(e["top1"], 1)
        page = self.ok("report", out, self.eval, "-o", "-")
        self.assertEqual(page.count('<section class="artefact">'), 1)
        self.assertIn(report["sha256"], page)
        self.assertIn(report["calibration"]["model_sha256"], page)
        for plot in ("Error", "KL", "Coverage", "Time", "Bits"):
            self.assertIn(plot + " by layer", page)
        self.assertAlmostEqual(e["top1"] + e["flips"], 1)
        page.encode("utf-8")
        for outside in ("http://", "https://", "src=", "url("):
            self.assertNotIn(outside, page)
        self.assertEqual(page, self.ok("report", os.path.join(out, "nibble-report.json"), self.eval,
                                       "-o", "-"))
        rows = self.ok("report", out, self.eval).splitlines()
        self.assertEqual(len(rows), 4)
        self.assertTrue(rows[1].startswith("out "))
        self.assertIn("%.3f" % e["perplexity"], rows[1])

    def test_a_block_that_lost_nothing_brings_nothing(self):
        out, report = self.quantized("--recipe", self.write(
            "r.txt", "model.layers.1.* = W4A16:g32 because \"<i>only</i> here\"\n"))
        first, second = [layer["kl_mean"] for layer in report["evaluation"]["layers"]]
        self.assertEqual(first, 0)
        self.assertGreater(second, 0)
        self.assertIn("&lt;i&gt;only&lt;/i&gt; here", self.ok("report", out, "-o", "-"))

    def test_a_gguf_has_its_report_beside_it(self):
        out, report = self.quantized("--scheme", "Q4_0", out="m.gguf")
        self.assertGreater(report["evaluation"]["kl_mean"], 0)
        page = self.ok("report", out, "-o", "-")
        self.assertIn("<h2>m.gguf</h2>", page)
        self.assertEqual(page, self.ok("report", out + ".nibble-report.json", "-o", "-"))

    def test_no_check_when_it_is_not_wanted_or_does_not_fit(self):
        _, report = self.quantized("--scheme", "W4A16:g32", "--check", "0")
        self.assertNotIn("evaluation", report)
        out, report = self.quantized("--scheme", "W4A16:g32", "--memory", "60M")
        self.assertEqual(list(report["evaluation"]), ["left_out"])
        self.assertIn("memory", report["evaluation"]["left_out"])
        self.assertIn("Not measured against the original: ", self.ok("report", out, "-o", "-"))

    def test_hostile_reports_are_refused_by_name(self):
        good = {"nibble": "1", "source": "<script>alert(1)</script>", "scheme": "s", "method": "m"}
        path = self.write("nibble-report.json", json.dumps(good))
        self.assertNotIn("<script", self.ok("report", path, "-o", "-"))
        for change in ({"source": 3}, {"notes": [1]}, {"calibration": []}, {"bpw": "x"}):
            self.write("nibble-report.json", json.dumps(dict(good, **change)))
            self.assertIn(next(iter(change)), self.fails(1, "report", path))
        for content in ("", "{", "[]", "{}", '{"nibble": 1}', "[" * 3000):
            self.write("nibble-report.json", content)
            self.assertIn("nibble-report.json", self.fails(1, "report", path))
            self.assertIn("nibble-report.json", self.fails(1, "report", self.folder))


if __name__ == "__main__":
    lib.main()
