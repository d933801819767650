"""The page in a browser, at a real server."""

import page


class Real(page.Page):
    def test_one_answer(self):
        if not page.SERVER:
            self.skipTest("no --server")
        self.allowed = [r"status of 404"]
        self.page.open(page.SERVER)
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
