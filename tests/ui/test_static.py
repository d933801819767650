#!/usr/bin/env python3
"""The web page as a text, without a browser: well-formed, of one piece, within its policy, with a
name for every control, and with colours that can be read. Each check has to catch a planted fault.

    test_static.py BUILD/ui [unittest arguments]
"""

import base64
import hashlib
import os
import re
import sys
import unittest
from html.parser import HTMLParser

LIMIT = 100 * 1000  # bytes of the whole page
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Reader(HTMLParser):
    """Elements with their attributes, and what is wrong with their nesting."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.faults = [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append("an attribute twice in <%s>" % tag)
        self.elements.append((tag, dict(attrs), [t for t, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.faults.append("</%s> closes %s" % (tag, self.open[-1][0] if self.open else "nothing"))
        else:
            self.open.pop()


def content(page, tag):
    found = re.findall(r"<%s[^>]*>(.*?)</%s>" % (tag, tag), page, re.S)
    return found[0] if len(found) == 1 else ""


def luminance(colour):
    colour = colour.lstrip("#")
    if len(colour) == 3:
        colour = "".join(c * 2 for c in colour)
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    a, b = luminance(a), luminance(b)
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def faults_of(page, policy):
    """All that is wrong with the page, in words."""
    out = []
    reader = Reader()
    reader.feed(page)
    reader.close()
    out += reader.faults
    if reader.open:
        out.append("<%s> is not closed" % reader.open[-1][0])
    if not page.startswith("<!DOCTYPE html>"):
        out.append("no doctype")

    # Of one piece: nothing is fetched, nothing is run that the policy does not name.
    if len(page.encode()) > LIMIT:
        out.append("%d bytes" % len(page.encode()))
    for tag in ("script", "style"):
        text = content(page, tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        if "%s-src 'sha256-%s';" % (tag, digest) not in policy:
            out.append("the policy does not name the %s" % tag)
    for word in ("unsafe-", "*", "http:", "https:"):
        if word in policy:
            out.append("the policy has " + word)
    for tag, attributes, _ in reader.elements:
        for name, value in attributes.items():
            if name.startswith("on") or name == "style":
                out.append("<%s %s> is against the policy" % (tag, name))
            if name in ("src", "srcset", "action", "formaction", "data"):
                out.append("<%s %s> fetches" % (tag, name))
            if name == "href" and not value.startswith(("#", "data:image/svg+xml,")):
                out.append("<%s href=%s> leads out" % (tag, value))
        if tag in ("iframe", "object", "embed", "base", "img", "form") and tag != "form":
            out.append("<%s>" % tag)
    style, script = content(page, "style"), content(page, "script")
    if re.search(r"url\(|@import|expression\(", style):
        out.append("the style fetches")
    for address in re.findall(r"https?://[\w.]+[^\s'\"`]*", page):
        if not address.startswith("http://www.w3.org/2000/svg"):
            out.append("the address " + address)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "createContextualFragment",
        "DOMParser",
        "srcdoc",
        "postMessage",
        "WebSocket",
        "XMLHttpRequest",
        "importScripts",
        "import(",
    ):
        if word in script:
            out.append("the script has " + word)

    # Ids are unique, and what is spoken of is there.
    ids = [a["id"] for _, a, _ in reader.elements if "id" in a]
    for name in {i for i in ids if ids.count(i) > 1}:
        out.append("two elements are #" + name)
    for name in set(re.findall(r"\$\('([\w-]+)'\)", script)):
        if name not in ids:
            out.append("the script asks for #%s" % name)
    for tag, attributes, _ in reader.elements:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            if name in attributes and attributes[name] not in ids:
                out.append("%s=%s names nothing" % (name, attributes[name]))

    # Controls have labels; landmarks and headings are what a screen reader goes by.
    labelled = {a["for"] for t, a, _ in reader.elements if t == "label" and "for" in a}
    for tag, attributes, within in reader.elements:
        if (
            tag in ("input", "select", "textarea")
            and "label" not in within
            and attributes.get("id") not in labelled
        ):
            out.append("<%s id=%s> has no label" % (tag, attributes.get("id")))
        if tag == "button" and attributes.get("type") not in ("button", "submit"):
            out.append("a button without a type")
        if tag in ("section", "nav", "aside", "dialog") and not (
            {"aria-label", "aria-labelledby"} & set(attributes)
        ):
            out.append("<%s> has no name" % tag)
        if int(attributes.get("tabindex", 0)) > 0:
            out.append("a tabindex that changes the order")
    for tag in ("header", "main", "h1"):
        if sum(t == tag for t, _, _ in reader.elements) != 1:
            out.append("not one <%s>" % tag)
    if reader.elements[0][1].get("lang") != "en":
        out.append("no language")

    # Text on what lies behind it, as the style pairs them: at least 4.5 (WCAG 2.1, 1.4.3); lines of
    # charts and edges of controls at least 3 (1.4.11).
    themes = re.findall(r":root(?:\[data-theme=dark\])? \{(.*?)\}", style, re.S)
    if len(themes) != 2:
        out.append("%d themes" % len(themes))
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", theme))
        pairs = [(a, b, 4.5) for a in ("fg", "soft", "accent") for b in ("bg", "card")]
        pairs += [
            ("bad", "bad-bg", 4.5),
            ("bad", "card", 4.5),
            ("bad", "bg", 4.5),
            ("on-accent", "accent", 4.5),
            ("fg", "code", 4.5),
            ("soft", "code", 4.5),
        ]
        pairs += [(a, "card", 3) for a in ("s0", "s1", "s2", "edge")]
        for a, b, least in pairs:
            if a not in colour or b not in colour or contrast(colour[a], colour[b]) < least:
                out.append("%s on %s" % (a, b))
    return out


class Static(unittest.TestCase):
    def test_page_is_right(self):
        self.assertEqual(faults_of(PAGE, POLICY), [])

    def test_planted_faults_are_found(self):
        faults = [
            ("</section>", "", "closes section"),
            ("<body>", "<body><div>", "closes div"),
            ('<h2 id="title-chat"', '<h2 style="color: red" id="title-chat"', "against the policy"),
            ('<button type="submit"', '<button onclick="x()" type="submit"', "against the policy"),
            ("<main ", '<img src="x.png"><main ', "fetches"),
            ('href="#chat"', 'href="/chat"', "leads out"),
            ("</main>", "https://example.org/x</main>", "the address"),
            ("// ----", "x.innerHTML = 1; // ----", "innerHTML"),
            ("// ----", " // ----", "does not name the script"),
            ("color-scheme: light;", "color-scheme:  light;", "does not name the style"),
            ('id="send"', 'id="stop"', "two elements are #stop"),
            ('id="regenerate"', 'id="generate"', "asks for #regenerate"),
            ('<label for="message">', "<label>", "has no label"),
            ('aria-label="Views"', "", "<nav> has no name"),
            ("--soft: #59626c", "--soft: #8a929a", "soft on bg"),
            ("--on-accent: #0c1417", "--on-accent: #ffffff", "on-accent on accent"),
            ("--edge: #7b838b", "--edge: #d5d9dd", "edge on card"),
            ("@keyframes", "@import", "the style fetches"),
            ("<!DOCTYPE html>", "", "no doctype"),
            ("</body>", "x" * LIMIT + "</body>", "bytes"),
        ]
        for old, new, want in faults:
            with self.subTest(old=old, new=new[:80]):
                self.assertIn(old, PAGE)
                found = faults_of(PAGE.replace(old, new, 1), POLICY)
                self.assertTrue(any(want in fault for fault in found), found)
        for old, new, want in (
            ("script-src 'sha256-", "script-src 'unsafe-inline' 'sha256-", "unsafe"),
            ("connect-src 'self'", "connect-src *", "has *"),
        ):
            self.assertIn(old, POLICY)
            self.assertTrue(any(want in fault for fault in faults_of(PAGE, POLICY.replace(old, new))))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: %s BUILD/ui" % sys.argv[0])
    folder = sys.argv.pop(1)
    with open(os.path.join(folder, "page.html"), encoding="utf-8") as f:
        PAGE = f.read()
    with open(os.path.join(folder, "page.policy"), encoding="ascii") as f:
        POLICY = f.read()
    unittest.main()
