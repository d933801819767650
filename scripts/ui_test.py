#!/usr/bin/env python3
"""The web page in a browser: chat, dashboard and report against a server that is made up, in a
Chromium without a window (Debian's package `chromium`). Not part of the tests of a build, as it
needs a browser; a minute.

    scripts/ui_test.py [--shots FOLDER] [--server URL] [BUILD/ui] [unittest arguments]

BUILD/ui is where the build has put the page together (build/release/ui). --shots keeps pictures of
every view; --server asks a running `nibble serve` for one answer, too.
"""

import os
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "ui"))
import browser  # noqa: E402
import page  # noqa: E402
from page_chat import Chat  # noqa: E402, F401
from page_dashboard import Dashboard  # noqa: E402, F401
from page_everywhere import Everyone  # noqa: E402, F401
from page_real import Real  # noqa: E402, F401
from page_report import Report  # noqa: E402, F401


def main():
    page.FOLDER = os.path.join(ROOT, "build", "release", "ui")
    arguments = sys.argv[1:]
    rest = []
    while arguments:
        a = arguments.pop(0)
        if a == "--shots":
            page.SHOTS = arguments.pop(0)
            os.makedirs(page.SHOTS, exist_ok=True)
        elif a == "--server":
            page.SERVER = arguments.pop(0)
        elif os.path.isdir(a):
            page.FOLDER = a
        else:
            rest.append(a)
    if browser.find() is None:
        print("SKIP: there is no chromium")
        sys.exit(77)
    if not os.path.exists(os.path.join(page.FOLDER, "page.html")):
        sys.exit("%s has no page.html: build first" % page.FOLDER)
    with browser.Browser() as page.BROWSER:
        result = unittest.main(argv=[sys.argv[0], *rest], exit=False, verbosity=1).result
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)


if __name__ == "__main__":
    main()
