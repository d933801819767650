"""Chromium without a window, driven over the DevTools protocol through a pipe: messages are JSON,
each ended by a zero byte, on the file descriptors 3 and 4 of the browser (--remote-debugging-pipe).
Python's standard library only.

    with Browser() as browser:
        page = browser.page()              # with storage of its own
        page.open("http://127.0.0.1:...")
        page.run("document.title")         # the value of an expression; promises are waited for
"""

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time


def find():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    return None


class BrowserError(Exception):
    pass


class Browser:
    def __init__(self, path=None):
        self.profile = tempfile.mkdtemp(prefix="nibble-ui-")
        to_read, self.to_browser = os.pipe()
        self.from_browser, to_write = os.pipe()

        def arrange():
            # Away from 3 and 4 first: either end may be one of them already.
            a, b = os.dup(to_read), os.dup(to_write)
            while a < 5:
                a = os.dup(a)
            while b < 5:
                b = os.dup(b)
            os.dup2(a, 3)
            os.dup2(b, 4)

        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--user-data-dir=" + self.profile,
            "--no-first-run",
            "--disable-gpu",
            "--disable-extensions",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--mute-audio",
            "--window-size=1280,900",
        ]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        self.process = subprocess.Popen(
            [path or find(), *flags, "about:blank"],
            preexec_fn=arrange,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.lock = threading.Lock()
        self.last_id = 0
        self.waiting = {}
        self.pages = {}
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        rest = b""
        while True:
            try:
                data = os.read(self.from_browser, 1 << 20)
            except OSError:
                data = b""
            if not data:
                break
            *whole, rest = (rest + data).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    self.waiting.pop(message["id"]).put(message)
                elif message.get("sessionId") in self.pages:
                    self.pages[message["sessionId"]].told(message)
        for answer in list(self.waiting.values()):
            answer.put({"error": {"message": "the browser is gone"}})

    def call(self, method, session=None, timeout=60, **params):
        answer = queue.Queue()
        with self.lock:
            self.last_id += 1
            message = {"id": self.last_id, "method": method, "params": params}
            if session:
                message["sessionId"] = session
            self.waiting[self.last_id] = answer
            data = json.dumps(message).encode() + b"\0"
            while data:
                data = data[os.write(self.to_browser, data) :]
        try:
            got = answer.get(timeout=timeout)
        except queue.Empty:
            raise BrowserError("%s: no answer" % method) from None
        if "error" in got:
            raise BrowserError("%s: %s" % (method, got["error"]["message"]))
        return got["result"]

    def page(self):
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, session["sessionId"], context)
        self.pages[page.session] = page
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            page.call(domain + ".enable")
        # The policy's refusals are events in the page, before any script of its own runs; one() and
        # all() are for the expressions of tests.
        page.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="""
            window.violations = [];
            window.one = (selector) => document.querySelector(selector);
            window.all = (selector) => document.querySelectorAll(selector);
            document.addEventListener('securitypolicyviolation',
                (e) => window.violations.push(e.violatedDirective + ' ' + e.blockedURI));""",
        )
        return page

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close", timeout=10)
        except BrowserError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to_browser)
        shutil.rmtree(self.profile, ignore_errors=True)


KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "Space": (" ", 32, " "),
    "ArrowDown": ("ArrowDown", 40, ""),
}


class Page:
    def __init__(self, browser, session, context):
        self.browser, self.session, self.context = browser, session, context
        self.console = []  # warnings, errors and exceptions
        self.addresses = []  # all that was asked for

    def told(self, message):
        method, params = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            said = details.get("exception", {}).get("description", "")
            self.console.append("exception: %s %s" % (details["text"], said))
        elif method == "Runtime.consoleAPICalled":
            self.console.append("console: %s" % [a.get("value") for a in params["args"]])
        elif method == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] in ("warning", "error"):
                self.console.append("%s: %s %s" % (entry["source"], entry["text"], entry.get("url", "")))
        elif method == "Network.requestWillBeSent":
            self.addresses.append(params["request"]["url"])

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href.startsWith(%s)" % json.dumps(url))

    def run(self, expression):
        got = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in got:
            details = got["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return got["result"].get("value")

    def until(self, expression, seconds=30):
        """Waits for the expression to be true, and returns its value."""
        end = time.monotonic() + seconds
        while True:
            value = self.run(expression)
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError("this did not come true: " + expression)
            time.sleep(0.02)

    def text(self, selector):
        return self.run("one(%s).innerText" % json.dumps(selector))

    def key(self, name, shift=False):
        key, code, text = KEYS.get(name, (name, ord(name[0].upper()), name))
        params = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **params, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def write(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """As a pointer would: on the middle of it, once it is in view and nothing covers it."""
        x, y = self.run("""(() => {
            const node = one(%s);
            node.scrollIntoView({block: 'center'});
            const box = node.getBoundingClientRect();
            const x = box.x + box.width / 2, y = box.y + box.height / 2;
            const hit = document.elementFromPoint(x, y);
            if (!hit || !(node.contains(hit) || hit.contains(node)))
                throw new Error('covered: ' + node.outerHTML.slice(0, 200));
            return [x, y];
        })()""" % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def size(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefers(self, **features):
        """prefers(color_scheme="dark") and the like."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-" + name.replace("_", "-"), "value": value}
                for name, value in features.items()
            ],
        )

    def shoot(self, path):
        import base64

        got = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        with open(path, "wb") as f:
            f.write(base64.b64decode(got["data"]))

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
