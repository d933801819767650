#!/usr/bin/env python3
"""The web page in a browser: chat, dashboard and report against a server that is made up, in a
Chromium without a window (Debian's package `chromium`). Not part of the tests of a build, as it
needs a browser; a minute.

    scripts/ui_test.py [--shots FOLDER] [--server URL] [BUILD/ui] [unittest arguments]

BUILD/ui is where the build has put the page together (build/release/ui). --shots keeps pictures of
every view; --server asks a running `nibble serve` for one answer, too.
"""

import json
import math
import os
import re
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "ui"))
import browser as chromium  # noqa: E402
import mock_server  # noqa: E402

BROWSER = None
FOLDER = os.path.join(ROOT, "build", "release", "ui")
SHOTS = None
SERVER = None

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

# The ratio of contrast of every text to what lies behind it (WCAG 2.1, 1.4.3), of what is shown.
CONTRASTS = r"""(() => {
    const part = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const parse = (c) => c.match(/[\d.]+/g).map(Number);
    const out = [];
    for (const node of document.querySelectorAll('body *')) {
        const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!(own || node.matches('input, textarea')) || !node.checkVisibility({ visibilityProperty: true })) continue;
        const style = getComputedStyle(node), svg = node instanceof SVGElement;
        let behind = [255, 255, 255, 1];
        for (let n = node; n; n = n.parentElement) {
            const c = parse(getComputedStyle(n).backgroundColor);
            if (c.length === 3 || c[3] === 1) { behind = c; break; }
            if (c[3] > 0) { out.push([0, 'half transparent: ' + n.outerHTML.slice(0, 80)]); break; }
        }
        const a = light(parse(svg ? style.fill : style.color)), b = light(behind);
        out.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 120)]);
    }
    return out;
})()"""


def quantile(bounds, counts, q):
    """Prometheus's histogram_quantile, for comparison."""
    rank = q * counts[-1]
    for i, n in enumerate(counts):
        if n >= rank:
            low, under = (bounds[i - 1], counts[i - 1]) if i else (0.0, 0)
            return low + (bounds[i] - low) * (rank - under) / (n - under)
    return math.nan


class Page(unittest.TestCase):
    allowed = ()  # complaints that a test expects: of answers that are errors

    def setUp(self):
        self.mock = mock_server.MockServer(FOLDER)
        self.addCleanup(self.mock.close)
        self.page = BROWSER.page()
        self.addCleanup(self.page.close)
        self.page.prefers(color_scheme="light", reduced_motion="no-preference")
        self.allowed = []
        self.addCleanup(self.harmless)

    def harmless(self):
        """What holds after every test: nothing ran that should not, nothing was asked of others."""
        for address in self.page.addresses:
            self.assertTrue(
                address.startswith((self.mock.url, "data:", "about:", SERVER or self.mock.url)), address
            )
        self.assertEqual(self.page.run("window.violations || []"), [])
        self.assertFalse(self.page.run("'hacked' in window"))
        self.assertEqual(
            [line for line in self.page.console if not any(re.search(a, line) for a in self.allowed)], []
        )

    def go(self, view=""):
        self.page.open(self.mock.url)
        self.page.until("one('#state').textContent === 'connected' && one('#model').textContent")
        if view:
            self.page.run("location.hash = '#%s'" % view)
            self.page.until("!one('#view-%s').hidden" % view)

    def say(self, text):
        self.page.run("one('#message').focus()")
        self.page.write(text)
        self.page.key("Enter")

    def ended(self, seconds=30):
        self.page.until("one('#stop').hidden && one('#message').value === ''", seconds)

    def answer(self):
        return self.page.run("[...all('.assistant .said')].at(-1).innerText")

    def foot(self):
        return self.page.run("[...all('.assistant footer')].at(-1).textContent")

    def problem(self):
        return self.page.until("one('#problem').hidden ? '' : one('#problem').innerText")

    def shoot(self, name):
        if SHOTS:
            self.page.shoot(os.path.join(SHOTS, name + ".png"))


class Chat(Page):
    def test_answer_comes_in_pieces(self):
        self.go()
        self.say("gated")
        for shown in ("One", "One two", "One two three."):
            self.page.until("[...all('.assistant .said')].at(-1)?.innerText === %s" % json.dumps(shown))
            self.assertFalse(self.page.run("one('#stop').hidden"))
            self.mock.gate.release()
        self.ended()
        self.assertEqual(self.answer(), "One two three.")
        self.assertRegex(
            self.foot(),
            r"^3 tokens, [\d.]+ tokens/s, first after [\d.]+ .*s, prompt 11 tokens \(4 of "
            r"them cached\), 14 of 2,048 of the context used$",
        )
        body = self.mock.asked()[0][3]
        self.assertEqual(body["messages"], [{"role": "user", "content": "gated"}])
        self.assertIs(body["stream"], True)
        self.assertEqual(body["stream_options"], {"include_usage": True})
        self.assertEqual(body["model"], self.mock.model)
        self.assertNotIn("temperature", body)
        self.assertEqual(self.page.text("#model"), self.mock.model)

    def test_conversation_goes_on(self):
        self.go()
        self.say("hello")
        self.ended()
        self.assertEqual(self.answer(), "The answer is 42.")
        self.assertEqual(self.page.run("one('.assistant strong').textContent"), "42")
        self.say("again")
        self.ended()
        self.assertEqual(
            [m["content"] for m in self.mock.asked()[1][3]["messages"]],
            ["hello", "The answer is **42**.", "again"],
        )
        # A reload keeps it, in this tab.
        self.page.call("Page.reload")
        self.page.until("all('.log article').length === 4")
        # Regenerate sends the same again, without the last answer.
        self.page.click("#regenerate")
        self.page.until("one('#stop').hidden")
        self.page.until("all('.log article').length === 4")
        self.assertEqual(len(self.mock.asked()[2][3]["messages"]), 3)
        # Edit takes the message back, and all that came after it.
        self.page.click(".log li:first-child button[aria-label^=Edit]")
        self.assertEqual(self.page.run("one('#message').value"), "hello")
        self.assertEqual(self.page.run("all('.log article').length"), 0)

    def test_new_chat_can_be_undone(self):
        self.go()
        self.say("hello")
        self.ended()
        self.page.click("#new")
        self.assertEqual(self.page.run("all('.log article').length"), 0)
        self.page.click("#empty button")
        self.assertEqual(self.page.run("all('.log article').length"), 2)
        self.assertEqual(self.answer(), "The answer is 42.")

    def test_stop(self):
        for how in ("Escape", "#stop"):
            with self.subTest(how):
                self.mock.gone.clear()
                self.go()
                self.say("slow")
                self.page.until("[...all('.assistant .said')].at(-1)?.innerText.includes('word5')")
                if how == "Escape":
                    self.page.key("Escape")
                else:
                    self.page.click(how)
                self.ended()
                self.assertIn("stopped by you", self.foot())
                self.assertTrue(self.mock.gone.wait(10), "the server still writes")
                self.assertNotIn("word1999", self.answer())
                self.assertTrue(self.page.run("one('#problem').hidden"))
                self.page.run("sessionStorage.clear()")

    def test_settings_are_sent(self):
        self.go()
        self.page.click("#settings summary")
        for field, value in (
            ("#system", "Be <brief>."),
            ("#n-temperature", "0.7"),
            ("#n-top_k", "40"),
            ("#n-seed", "7"),
            ("#stop-texts", "END\n\nSTOP"),
        ):
            self.page.run("one('%s').focus()" % field)
            self.page.write(value)
        self.page.click("#as-json")
        self.say("hello")
        self.ended()
        body = self.mock.asked()[0][3]
        self.assertEqual(body["messages"][0], {"role": "system", "content": "Be <brief>."})
        self.assertEqual(
            (body["temperature"], body["top_k"], body["seed"], body["stop"], body["response_format"]),
            (0.7, 40, 7, ["END", "STOP"], {"type": "json_object"}),
        )
        # They are still there after a reload; a number that makes no sense is not sent.
        self.page.call("Page.reload")
        self.page.until("one('#n-top_k')?.value === '40'")
        self.page.run("one('#n-temperature').value = '9'")
        self.say("more")
        self.assertIn("temperature has to be a number from 0 to 2", self.problem())
        self.assertEqual(self.page.run("document.activeElement.id"), "n-temperature")
        self.assertEqual(len(self.mock.asked()), 1)
        self.page.click("#reset")
        self.page.run("one('#message').focus()")
        self.page.key("Enter")
        self.ended()
        self.assertNotIn("temperature", self.mock.asked()[1][3])

    def test_hostile_text_stays_text(self):
        self.mock.model = "<img src=x onerror='window.hacked=1'>" + "m" * 5000
        self.go()
        self.say("hostile")
        self.ended()
        text = self.answer()
        for piece in (
            "<script>window.hacked = 1</script>",
            '<img src=x onerror="window.hacked = 2">',
            "</p></div></main><style>",
            "[a link](javascript:window.hacked=5)",
            "<iframe srcdoc=",
            "${window.hacked=12}",
            "U+202E code U+202C",
            "<script>window.hacked = 8</script>",
        ):
            self.assertIn(piece, text)
        self.assertEqual(
            self.page.run("all('.said :is(script, img, svg, style, iframe, form, input)').length"), 0
        )
        links = self.page.run("[...all('.said a')].map((a) => [a.href, a.rel])")
        for address, rel in links:
            self.assertRegex(address, r"^https?://")
            self.assertIn("noopener", rel)
        self.assertTrue(self.page.run("one('#view-chat').checkVisibility()"))
        # What the user writes is text, too, and what is asked of the server is what was written.
        self.say("<img src=x onerror='window.hacked=1'>")
        self.ended()
        self.assertEqual(
            self.page.run("all('.user .said')[1].textContent"), "<img src=x onerror='window.hacked=1'>"
        )
        # Copied is what the model wrote, not what was made of it.
        self.page.run("navigator.clipboard.writeText = async (t) => { window.copied = t; }")
        self.page.click(".log li:nth-child(2) button[aria-label='Copy the answer']")
        self.assertEqual(self.page.until("window.copied"), "\n\n".join(mock_server.HOSTILE))

    def test_one_line_of_a_megabyte(self):
        self.go()
        self.say("long")
        self.ended(60)
        want = ("<b>" + "x" * 16381) * 64
        got = self.page.run("[...all('.assistant .said > *')].map((n) => n.textContent).join('')")
        self.assertEqual(got, want)
        self.assertLessEqual(
            self.page.run("Math.max(...[...all('.said > *')].map((n) => n.textContent.length))"), 8192
        )
        self.assertLessEqual(self.page.run("document.documentElement.scrollWidth - innerWidth"), 0)

    def test_marks_without_end(self):
        """What opens and never closes, a megabyte of it: the work stays that of so many characters."""
        self.go()
        self.say("worst")
        self.ended(60)
        self.assertGreater(len(self.page.run("all('.assistant .said')[0].textContent")), 500000)

    def test_long_code_is_copied_whole(self):
        self.go()
        self.say("fenced")
        self.ended()
        self.page.run("navigator.clipboard.writeText = async (t) => { window.copied = t; }")
        self.assertEqual(self.page.run("all(\"button[aria-label='Copy this code']\").length"), 1)
        self.page.click("button[aria-label='Copy this code']")
        self.assertEqual(
            self.page.until("window.copied"), "".join("line %d of code, <b>\n" % i for i in range(1500))
        )

    def test_events_cut_anywhere(self):
        self.go()
        self.say("pieces")
        self.ended()
        self.assertEqual(self.answer(), "Gr\u00fc\u00dfe on two lines \U0001f600 \u4f60\u597d.")
        self.say("odd")
        self.ended()
        self.assertEqual(self.answer(), "fine")
        self.say("whole")
        self.ended()
        self.assertEqual(self.answer(), "All at once.")

    def test_markdown(self):
        self.go()
        self.say("markdown")
        self.ended()
        count = "all('.said %s').length"
        for selector, n in (
            ("h4", 1),
            ("strong", 2),
            ("strong em", 1),
            ("em", 2),
            ("s", 1),
            ("p code", 1),
            ("ol", 1),
            ("ol > li", 3),
            ("ol ul > li", 2),
            ("blockquote", 1),
            ("hr", 1),
            ("td", 2),
            ("th", 2),
            ("pre", 1),
            ("a", 2),
        ):
            self.assertEqual(self.page.run(count % selector), n, selector)
        self.assertIn("snake_case_name, 2 * 3 * 4.", self.answer())
        self.assertIn("the site (example.org)", self.answer())
        self.assertIn("cut at the length allowed", self.foot())
        self.shoot("chat")
        # The same as plain text.
        self.page.run("one('#as-text').checked = true")
        self.page.click("#regenerate")
        self.ended()
        self.page.until("all('.said strong').length === 0")
        self.assertIn("Some **bold _both_**", self.answer())

    def test_errors_are_words(self):
        self.allowed = [r"status of (429|503|400)", r"ERR_INCOMPLETE_CHUNKED"]
        cases = {
            "busy": "busy; it asks to try again in 3 s",
            "loading": "not ready: it is loading",
            "wrong": "temperature: 9 is not in [0, 2] (temperature)",
            "broken": "ended before the answer was complete",
            "error": "stopped the answer: the server is shutting down",
            "nonsense": "no JSON",
            "empty": "The answer is empty",
        }
        for word, said in cases.items():
            with self.subTest(word):
                self.go()
                self.say(word)
                self.ended()
                self.assertIn(said, self.problem())
                if word in ("broken", "error"):
                    self.assertEqual(self.answer(), "So far")
                    self.assertIn("not complete", self.foot())
                else:
                    self.assertEqual(self.page.run("all('.assistant').length"), 0)
                self.page.run("sessionStorage.clear()")
        # What was said is not lost: it can be tried again.
        n = len(self.mock.asked())
        self.page.click("#problem button")
        self.page.until("one('#stop').hidden")
        self.assertEqual(self.mock.asked()[n][3]["messages"][-1]["content"], "empty")

    def test_server_gone(self):
        self.allowed = [r"ERR_CONNECTION_REFUSED"]
        self.go()
        self.mock.close()
        self.say("hello")
        self.assertIn("cannot be reached", self.problem())

    def test_key(self):
        self.allowed = [r"status of 401"]
        self.mock.need_key = True
        self.page.open(self.mock.url)
        self.page.until("one('#state').textContent.includes('wants an API key')")
        self.say("hello")
        self.assertIn("wants an API key", self.problem())
        self.page.until("document.activeElement.id === 'key'")
        self.page.write(mock_server.KEY)
        self.page.key("Tab")
        self.page.until("one('#model').textContent !== ''")
        self.page.click("#problem button")
        self.page.until("all('.assistant').length === 1")
        self.ended()
        self.assertEqual(self.answer(), "The answer is 42.")
        self.assertTrue(self.page.run("JSON.stringify(sessionStorage).includes('%s')" % mock_server.KEY))
        self.assertFalse(self.page.run("JSON.stringify(localStorage).includes('%s')" % mock_server.KEY))
        self.assertEqual(self.page.run("one('#key').type"), "password")
        # A key that no header can carry is not a server that is gone.
        self.page.run("one('#key').focus(); one('#key').select()")
        self.page.write("k\u00e9y\u4f60")
        self.say("hello")
        self.assertIn("characters that no key has", self.problem())

    def test_screen_readers_are_not_flooded(self):
        self.mock.words = ["W%d. " % i for i in range(300)]
        self.mock.pause = 0.002
        self.go()
        self.page.run("""window.spoken = [];
            new MutationObserver(() => spoken.push(one('#spoken').textContent)).observe(
                one('#spoken'), { childList: true, subtree: true, characterData: true });""")
        self.say("hello")
        self.ended()
        spoken = self.page.run("window.spoken")
        self.assertLessEqual(len(spoken), 40)  # of 300 pieces
        self.assertIn("W299.", "".join(spoken))
        self.assertTrue(spoken[-1].endswith("The answer is complete."))
        # However long the rest is, its end is told.
        self.say("long")
        self.ended(60)
        self.assertTrue(self.page.run("window.spoken").pop().endswith("and moreThe answer is complete."))
        # What changes with each token stands in no live region.
        self.assertTrue(
            self.page.run(
                "one('.said').closest('[aria-live], [role=status], [role=alert], [role=log]') === null"
            )
        )


class Dashboard(Page):
    HIST = {
        "vllm:time_to_first_token_seconds": (["0.1", "0.5", "1.0", "+Inf"], [20, 60, 100, 100], 50),
        "vllm:inter_token_latency_seconds": (["0.01", "0.025", "+Inf"], [10, 30, 60], 3),
    }

    def test_numbers(self):
        self.mock.metrics = mock_server.metrics_text(hist=self.HIST)
        self.go("dashboard")
        self.page.run("one('#window').value = '0'; one('#window').dispatchEvent(new Event('change'))")
        tiles = self.page.until(
            """(() => { const tiles = Object.fromEntries([...all('#tiles > div')].map((d) =>
            [d.querySelector('dt').textContent, d.querySelector('dd').innerText])); return tiles.running && tiles; })()"""
        )
        want = {
            "running": "3",
            "waiting": "7",
            "KV cache in use": "62.5 %",
            "fragmentation": "3.1 %",
            "prefix hits": "25 %",
            "preemptions": "5",
            "memory": "512 MiB",
            "requests finished": "42",
            "refused": "9",
            "clients that left": "4",
            "open files": "17",
        }
        for name, value in want.items():
            self.assertEqual(tiles[name].split("\n")[0].strip(), value, name)
        self.assertIn("40 stop, 2 length", tiles["requests finished"])
        self.assertRegex(tiles["running for"], r"^1[1-9](\.\d)? min")
        rows = self.page.run(
            "[...all('#latency tbody tr')].map((r) => [...r.children].map((c) => c.textContent))"
        )
        bounds, counts = [0.1, 0.5, 1.0], [20, 60, 100]
        self.assertEqual(rows[0][:3], ["to the first token", "100", "500 ms"])
        for cell, q in zip(rows[0][3:], (0.5, 0.9, 0.95, 0.99)):
            value, unit = cell.split(" ")
            self.assertAlmostEqual(
                float(value) / {"ms": 1000, "s": 1}[unit], quantile(bounds, counts, q), places=2
            )
        # Past the last bound, nothing is known but that it is past it.
        self.assertEqual(rows[1][5], "over 25 ms")
        self.assertEqual(rows[2][1:], ["\u2013"] * 6)

    def test_rates_and_windows(self):
        """Deltas: what was before the page came does not count, and a restart is no negative rate."""
        state = {"made": 1000, "n": 100}

        def text():
            state["made"] += 50
            state["n"] += 10
            return mock_server.metrics_text(
                made=state["made"],
                hist={
                    "vllm:time_to_first_token_seconds": (
                        ["0.1", "1.0", "+Inf"],
                        [0, state["n"], state["n"]],
                        100,
                    )
                },
            )

        self.mock.metrics = text
        self.go("dashboard")
        self.page.run("one('#period').value = '1'; one('#period').dispatchEvent(new Event('change'))")
        rate = "parseFloat(one('#tiles dd').innerText)"
        self.assertTrue(0 < self.page.until(rate) < 1000)
        counted = self.page.until(
            "(() => { const n = Number(one('#latency tbody td').textContent); return n >= 20 && n; })()"
        )
        self.assertLess(counted, 100)
        state.update(made=0, n=0)
        self.page.until(
            "one('#tiles small').textContent.startsWith('50 ') || one('#tiles small').textContent.startsWith('100 ')"
        )
        self.assertFalse(self.page.text("#tiles").count("-"))
        self.assertEqual(self.page.run("all('#charts figure').length"), 6)
        self.assertFalse(self.page.run("one('#charts').outerHTML.includes('NaN')"))
        self.page.click("#pause")
        asked = len(self.mock.asked("/metrics"))
        self.page.run("new Promise((go) => setTimeout(go, 2500))")
        self.assertLessEqual(len(self.mock.asked("/metrics")), asked + 1)
        self.shoot("dashboard")

    def test_alerts_are_seen_everywhere(self):
        self.mock.metrics = mock_server.metrics_text(
            alerts=[("memory", 1), ("latency", 0), ("<b>odd</b>", 1)]
        )
        self.go()
        alerts = self.page.until("one('#alerts').innerText")
        self.assertIn("Memory: more of it is in use than the alert allows.", alerts)
        self.assertIn("Alert: <b>odd</b>", alerts)
        self.assertNotIn("Latency", alerts)
        self.assertEqual(self.page.run("one('#alerts').getAttribute('role')"), "alert")
        self.page.run("location.hash = '#dashboard'")
        self.assertIn("latency: no", self.page.until("one('#alert-list').innerText"))
        self.mock.metrics = mock_server.metrics_text(alerts=[("memory", 0)])
        self.page.until("one('#alerts').innerText === ''")

    def test_hostile_metrics(self):
        self.mock.metrics = "\n".join(
            [
                "vllm:generation_tokens_total 1e999",
                "vllm:num_requests_running NaN",
                "vllm:kv_cache_usage_perc -Inf",
                "x" * 100000,
                "process_start_time_seconds 1e300",
                "vllm:prompt_tokens_total <b>",
                'vllm:time_to_first_token_seconds_bucket{le="<b>"} 3',
                'vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 3',
                'nibble:kv_blocks{state="__proto__"} 1',
                'nibble:alert{name="' + "z" * 500 + '"} 1',
                'a{b="' + "\\" * 999,
            ]
        )
        self.go("dashboard")
        self.page.until("all('#tiles > div').length > 5")
        self.assertNotIn("NaN", self.page.text("#view-dashboard"))
        self.assertLessEqual(self.page.run("document.documentElement.scrollWidth - innerWidth"), 0)


class Report(Page):
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


class Everyone(Page):
    def all_views(self, look):
        """Calls look(name) with each view full of things, an alert, a problem and the keys among them."""
        self.mock.report = REPORT
        self.mock.metrics = mock_server.metrics_text(
            hist=Dashboard.HIST, alerts=[("memory", 1), ("latency", 0)]
        )
        self.go()
        self.page.until("one('#alerts').innerText")
        self.page.run("one('#settings').open = true")
        self.say("markdown")
        self.ended()
        self.say("hostile")
        self.ended()
        look("chat")
        self.page.run("location.hash = '#dashboard'")
        self.page.until("all('#charts figure').length === 6")
        look("dashboard")
        self.page.run("location.hash = '#report'")
        self.page.until("all('#report figure').length === 3")
        self.page.run("one('#report details').open = true")
        look("report")
        self.page.click("#help-open")
        look("help")
        self.page.click("#help-close")

    def test_contrast_in_both_themes(self):
        seen = {}
        for theme in ("light", "dark"):
            self.page.prefers(color_scheme=theme)

            def look(view):
                ratios = self.page.run(CONTRASTS)
                self.assertGreater(len(ratios), 25)
                for ratio, what in ratios:
                    self.assertGreaterEqual(ratio, 4.5, "%s, %s: %s" % (theme, view, what))
                seen[theme, view] = self.page.run("getComputedStyle(document.body).backgroundColor")
                self.shoot("%s-%s" % (view, theme))

            self.all_views(look)
            self.page.run("sessionStorage.clear()")
        self.assertNotEqual(seen["light", "chat"], seen["dark", "chat"])

    def test_theme_switch(self):
        self.go()
        back = "getComputedStyle(document.body).backgroundColor"
        light = self.page.run(back)
        self.page.prefers(color_scheme="dark")
        dark = self.page.until("%s !== %s && %s" % (back, json.dumps(light), back))
        self.page.run("one('#theme').value = 'light'; one('#theme').dispatchEvent(new Event('change'))")
        self.assertEqual(self.page.run(back), light)
        self.page.call("Page.reload")
        self.page.until("one('#theme')?.value === 'light'")
        self.assertEqual(self.page.run(back), light)
        self.page.run("one('#theme').value = 'system'; one('#theme').dispatchEvent(new Event('change'))")
        self.assertEqual(self.page.run(back), dark)

    def test_narrow_screens(self):
        for width in (320, 768):
            self.page.size(width, 700)

            def look(view):
                over = self.page.run("document.documentElement.scrollWidth - innerWidth")
                self.assertLessEqual(over, 0, "%s at %d" % (view, width))
                self.shoot("%s-%d" % (view, width))

            self.all_views(look)
            self.page.run("sessionStorage.clear()")

    def test_reduced_motion(self):
        moving = "document.getAnimations().length"
        self.page.prefers(reduced_motion="reduce")
        self.go()
        self.say("gated")
        self.page.until("all('.assistant .said.writing').length")
        self.assertEqual(self.page.run(moving), 0)
        self.page.prefers(reduced_motion="no-preference")
        self.page.until(moving)
        self.page.key("Escape")
        self.ended()

    def test_everything_by_keyboard(self):
        """From the start of the page, Tab reaches everything that can be used, and shows where it is."""
        self.go()
        self.say("hello")
        self.ended()
        self.page.run(
            "one('#settings').open = true; document.activeElement.blur(); scrollTo(0, 0); getSelection().removeAllRanges()"
        )
        self.page.call("Page.reload")
        self.page.until("one('#state')?.textContent === 'connected'")
        self.page.run("one('#settings').open = true")
        reached = []
        for _ in range(80):
            self.page.key("Tab")
            at = self.page.run(
                """(() => { const n = document.activeElement; if (n === document.body) return null;
                n.dataset.reached = 1; return [n.id || n.textContent, getComputedStyle(n).outlineStyle !== 'none']; })()"""
            )
            if at is None:
                break
            self.assertTrue(at[1], "no outline: %s" % at[0])
            reached.append(at[0])
        self.assertEqual(reached[0], "Skip to the content")
        order = [
            name
            for name in reached
            if name in ("Chat", "Dashboard", "theme", "help-open", "message", "send", "system", "key")
        ]
        self.assertEqual(
            order, ["Chat", "Dashboard", "theme", "help-open", "message", "send", "system", "key"]
        )
        missed = self.page.run(
            """[...all('a, button, input, select, textarea, summary')]
            .filter((n) => n.checkVisibility() && !n.disabled && !n.dataset.reached).map((n) => n.outerHTML)"""
        )
        self.assertEqual(missed, [])

    def test_shortcuts(self):
        self.go()
        self.page.run("document.activeElement.blur()")
        self.page.key("2")
        self.page.until("!one('#view-dashboard').hidden")
        self.assertEqual(self.page.run("document.activeElement.id"), "title-dashboard")
        self.page.key("/")
        self.assertEqual(self.page.run("document.activeElement.id"), "message")
        self.assertFalse(self.page.run("one('#view-chat').hidden"))
        self.page.key("2")  # in a field a key is a letter
        self.assertEqual(self.page.run("one('#message').value"), "2")
        self.page.key("Enter", shift=True)
        self.assertEqual(self.page.run("one('#message').value"), "2\n")
        self.page.run("one('#message').value = ''; document.activeElement.blur()")
        self.page.key("?", shift=True)
        self.page.until("one('#help').open")
        self.assertEqual(self.page.run("all('#keys tr').length"), 11)
        self.page.click("#single-keys")
        self.page.key("Escape")
        self.page.until("!one('#help').open")
        self.page.run("document.activeElement.blur()")
        self.page.key("2")
        self.assertTrue(self.page.run("one('#view-dashboard').hidden"))

    def test_everything_has_a_name(self):
        def look(view):
            nodes = self.page.call("Accessibility.getFullAXTree")["nodes"]
            roles = {}
            for node in nodes:
                role = node.get("role", {}).get("value")
                name = node.get("name", {}).get("value", "").strip()
                if node.get("ignored"):
                    continue
                roles.setdefault(role, []).append(name)
                if role in (
                    "button",
                    "link",
                    "textbox",
                    "spinbutton",
                    "combobox",
                    "checkbox",
                    "image",
                    "img",
                    "dialog",
                    "DisclosureTriangle",
                    "table",
                ):
                    if role == "table" and view == "help":
                        continue
                    self.assertTrue(
                        name or (role == "table" and view == "chat"),
                        "%s without a name in %s" % (role, view),
                    )
            if view != "help":
                for landmark in ("banner", "navigation", "main"):
                    self.assertEqual(len(roles.get(landmark, [])), 1, landmark)
                self.assertTrue(roles.get("heading"))

        self.all_views(look)

    def test_policy_keeps_others_out(self):
        """Planted: what an injection would try is refused by the browser."""
        self.go()
        for attempt in (
            "document.body.innerHTML = '<img src=x onerror=window.hacked=1>'",
            "document.write('<b>')",
            "eval('window.hacked = 1')",
            "new Function('window.hacked = 1')()",
        ):
            with self.assertRaises(chromium.BrowserError, msg=attempt):
                # Through a timer, as the protocol's own evaluation is exempt from the policy.
                self.page.run(
                    "new Promise((go, stop) => setTimeout(() => { try { %s; go(1); } catch (e) { stop(e); } }))"
                    % attempt
                )
        self.page.run(
            "new Promise((go) => { const i = new Image(); i.onload = i.onerror = go; i.src = 'http://127.0.0.1:9/x.png'; })"
        )
        self.assertGreaterEqual(len(self.page.run("window.violations")), 1)
        self.page.run("window.violations = []")
        self.page.console.clear()
        self.page.addresses = [a for a in self.page.addresses if ":9/" not in a]


class Real(Page):
    def test_one_answer(self):
        if not SERVER:
            self.skipTest("no --server")
        self.allowed = [r"status of 404"]
        self.page.open(SERVER)
        self.page.until("one('#model').textContent")
        self.page.run("one('#n-max_tokens').value = '16'")
        self.say("Say hello.")
        self.ended(120)
        self.assertTrue(self.answer())
        self.assertRegex(self.foot(), r"tokens/s")
        for view in ("dashboard", "report"):
            self.page.run("location.hash = '#%s'" % view)
            self.page.run("new Promise((go) => setTimeout(go, 3000))")
            self.shoot("real-" + view)


def main():
    global BROWSER, FOLDER, SHOTS, SERVER
    arguments = sys.argv[1:]
    rest = []
    while arguments:
        a = arguments.pop(0)
        if a == "--shots":
            SHOTS = arguments.pop(0)
            os.makedirs(SHOTS, exist_ok=True)
        elif a == "--server":
            SERVER = arguments.pop(0)
        elif os.path.isdir(a):
            FOLDER = a
        else:
            rest.append(a)
    if chromium.find() is None:
        print("SKIP: there is no chromium")
        sys.exit(77)
    if not os.path.exists(os.path.join(FOLDER, "page.html")):
        sys.exit("%s has no page.html: build first" % FOLDER)
    with chromium.Browser() as BROWSER:
        result = unittest.main(argv=[sys.argv[0], *rest], exit=False, verbosity=1).result
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)


if __name__ == "__main__":
    main()
