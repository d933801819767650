"""The dashboard, in a browser."""

import math

import mock_server
import page


def quantile(bounds, counts, q):
    """Prometheus's histogram_quantile, for comparison."""
    rank = q * counts[-1]
    for i, n in enumerate(counts):
        if n >= rank:
            low, under = (bounds[i - 1], counts[i - 1]) if i else (0.0, 0)
            return low + (bounds[i] - low) * (rank - under) / (n - under)
    return math.nan


class Dashboard(page.Page):
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
