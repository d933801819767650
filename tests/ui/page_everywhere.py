"""What holds for all views of the page in a browser: for everyone, by every means."""

import json

import browser
import mock_server
import page
import page_dashboard
import page_report


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


class Everyone(page.Page):
    def all_views(self, look):
        """Calls look(name) with each view full of things, an alert, a problem and the keys among them."""
        self.mock.report = page_report.REPORT
        self.mock.metrics = mock_server.metrics_text(
            hist=page_dashboard.Dashboard.HIST, alerts=[("memory", 1), ("latency", 0)]
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
            with self.assertRaises(browser.BrowserError, msg=attempt):
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
