"""The web page as a visitor sees it, driven by a browser against a server that is made up: what the
tests of its views share. scripts/ui_test.py runs them, and says where and how."""

import os
import re
import unittest

import mock_server

BROWSER = None  # browser.Browser, running
FOLDER = None  # where the build has put the page together
SHOTS = None  # a folder for pictures; None: none are kept
SERVER = None  # the address of a running server; None: there is none


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
