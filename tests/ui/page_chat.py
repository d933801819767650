"""The chat, in a browser."""

import json

import mock_server
import page


class Chat(page.Page):
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
