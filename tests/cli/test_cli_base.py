"""The command line's base: help, suggestions, options, exit codes, closed and full outputs."""

import os
import signal
import subprocess
import time

import lib


class Help(lib.Case):
    def test_overview_lists_every_verb_that_exists(self):
        out = self.ok("--help")
        self.assertEqual(out, self.ok("help"))
        self.assertEqual(out, self.ok("-h"))
        verbs = [line.split()[0] for line in out.splitlines() if line.startswith("  ")
                 and not line.startswith("  nibble")]
        for verb in ("pull", "inspect", "tokenize", "report"):
            self.assertIn(verb, verbs)
        for verb in verbs:
            text = self.ok(verb, "--help")
            self.assertTrue(text.startswith("nibble %s: " % verb), text)
            self.assertEqual(text, self.ok("help", verb))
            self.assertEqual(text, self.ok(verb, "anything", "-h", "--no-such"))
            # Help leads with an example that is this verb's.
            self.assertIn("Example:\n  nibble %s " % verb, text)
            self.assertIn("  -h, --help ", text)
            self.assertLessEqual(max(map(len, text.splitlines())), 90)

    def test_what_help_lists_is_what_the_parser_takes(self):
        """One table makes both: each option of the help, given twice, is refused as given twice."""
        for verb in ("pull", "inspect", "tokenize", "report"):
            for line in self.ok(verb, "--help").split("Options:")[1].splitlines():
                words = line.split()
                names = [w for w in words[:2] if w.startswith("--")]
                if not names or names[0] == "--help" or "may be repeated" in line:
                    continue
                name = names[0]
                takes_value = words[words.index(name) + 1].isupper() and not line.startswith(" " * 20)
                value = {"--ctx": "8", "--kv": "f16", "--nonfinite": "skip", "--retries": "1",
                         "--stall": "1", "--threads": "1"}.get(name, "x")
                given = [name, value] if takes_value else [name]
                if name == "--file":
                    continue
                message = self.fails(2, verb, *given, *given)
                self.assertEqual(message, "nibble: %s: %s is given twice" % (verb, name))

    def test_version(self):
        self.assertRegex(self.ok("--version"), r"^nibble \d+\.\d+\.\d+\n$")


class Usage(lib.Case):
    def test_exact_messages(self):
        for args, message in [
            ((), "no verb given; 'nibble --help' lists them"),
            (("inspcet",), "unknown verb 'inspcet'; did you mean 'inspect'?"),
            (("tok",), "unknown verb 'tok'; did you mean 'tokenize'?"),
            (("zzzz",), "unknown verb 'zzzz'; 'nibble --help' lists the verbs"),
            (("--verson",), "unknown option '--verson'; 'nibble --help' lists the verbs"),
            (("help", "repotr"), "unknown verb 'repotr'; did you mean 'report'?"),
            (("inspect", "m", "--jsn"), "inspect: unknown option '--jsn'; did you mean '--json'?"),
            (("inspect", "m", "--nonfinite-check"),
             "inspect: unknown option '--nonfinite-check'; did you mean '--nonfinite'?"),
            (("inspect", "m", "--zzzzzz"),
             "inspect: unknown option '--zzzzzz'; 'nibble inspect --help' lists them"),
            (("inspect", "m", "-z"),
             "inspect: unknown option '-z'; 'nibble inspect --help' lists them"),
            (("inspect",), "inspect: MODEL is missing (a .gguf file or a Hugging Face folder); "
                           "try: nibble inspect model.gguf --ctx 4096"),
            (("inspect", "a", "b"), "inspect: unexpected argument 'b'"),
            (("inspect", "m", "--json=1"), "inspect: --json takes no value"),
            (("inspect", "m", "--json", "--json"), "inspect: --json is given twice"),
            (("inspect", "m", "--ctx"), "inspect: --ctx needs a value: --ctx N"),
            (("inspect", "m", "--ctx", "--json"),
             "inspect: --ctx needs a value: --ctx N (write --option=-x for one that starts with "
             "a dash)"),
            (("inspect", "m", "--kv", "int3"),
             "inspect: --kv 'int3': must be one of auto, f16, f32, bf16, int8, fp8, fp8:dynamic, fp8_e4m3, "
             "int4, int4_plain, int2"),
            (("report", "r", "-o", ""), "report: --output '': an empty path"),
            (("report", "r", "-o"), "report: --output needs a value: --output PATH"),
        ]:
            with self.subTest(args=args):
                self.assertEqual(self.fails(2, *args), "nibble: " + message)

    def test_numbers_out_of_range_print_the_range(self):
        for value in ("0", "-1", "16777217", "9223372036854775808", "-9223372036854775809",
                      "99999999999999999999999", "1e3", "0x10", "1.5", "", " 1", "1 ", "nan", "٣"):
            for args in (["--ctx", value], ["--ctx=" + value]):
                message = self.fails(2, "inspect", "m", *args)
                self.assertIn("must be a whole number from 1 to 16777216", message)

    def test_names_are_escaped(self):
        raw = b"no\xffsuch\nfile\x1b[31m"
        message = self.fails(1, "inspect", raw)
        self.assertIn("no\\xffsuch\\x0afile\\x1b[31m: No such file", message)
        message = self.fails(2, b"ver\xffb\n")
        self.assertIn("ver\\xffb\\x0a", message)

    def test_long_arguments_stay_one_line(self):
        self.fails(1, "inspect", "x" * 100000)
        self.fails(2, "x" * 100000)
        self.fails(2, "inspect", "m", "--" + "x" * 100000)
        self.fails(2, "inspect", "m", "--kv", "x" * 100000)
        self.fails(2, "inspect", "m", "--ctx", "9" * 100000)

    def test_double_dash_ends_options(self):
        self.write("-r", '{"name":"a","bpw":4}\n')
        self.fails(2, "report", "-r", cwd=self.folder)
        self.assertIn("a", self.ok("report", "--", "-r", cwd=self.folder))
        self.assertIn("a", self.ok("report", "./-r", cwd=self.folder))
        self.fails(1, "report", "--", "--json", cwd=self.folder)

    def test_options_and_operands_in_any_order(self):
        r = self.write("r", '{"name":"a","bpw":4}\n')
        outs = {self.ok("report", "--markdown", r), self.ok("report", r, "--markdown")}
        self.assertEqual(len(outs), 1)

    def test_short_options_take_values_both_ways(self):
        r = self.write("r", '{"name":"a","bpw":4}\n')
        for i, args in enumerate((["-o", "1"], ["-o2"], ["-o=3"])):
            self.ok("report", r, *args, cwd=self.folder)
            self.assertTrue(os.path.exists(self.path(str(i + 1))))


class Streams(lib.Case):
    """No crash whatever the standard streams are."""

    def setUp(self):
        super().setUp()
        self.results = self.write("r", "".join('{"name":"row %d","bpw":4}\n' % i for i in range(900)))

    def shell(self, command):
        done = subprocess.run(["/bin/sh", "-c", command, "sh", lib.BINARY, self.results],
                              capture_output=True, env=lib.environment(), cwd=self.folder)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def test_full_disk_is_exit_3(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full here")
        code, _, err = self.shell('"$1" report "$2" >/dev/full')
        self.assertEqual((code, err), (3, "nibble: standard output: No space left on device\n"))
        code, _, _ = self.shell('"$1" --version >/dev/full')
        self.assertEqual(code, 3)

    def test_closed_reader_is_exit_3_without_a_signal(self):
        code, out, err = self.shell('{ "$1" report "$2"; echo "code $?" >&2; } | true')
        self.assertIn("code 3", err)
        self.assertIn("nibble: standard output: Broken pipe", err)

    def test_closed_descriptors(self):
        code, out, err = self.shell('"$1" report "$2" >&-')
        self.assertEqual(code, 3)
        self.assertIn("nibble: standard output: Bad file descriptor", err)
        expected = self.ok("report", self.results)
        for closed in ("<&-", "2>&-", "<&- 2>&-"):
            code, out, err = self.shell('"$1" report "$2" ' + closed)
            self.assertEqual((code, out), (0, expected), closed)
        code, _, _ = self.shell('"$1" report "$2" <&- >&- 2>&-')
        self.assertEqual(code, 3)
        # A page written with every stream closed is the page, not the page with messages in it.
        code, _, _ = self.shell('"$1" report "$2" -o page 2>&- <&-')
        self.assertEqual(code, 0)
        with open(self.path("page")) as f:
            self.assertTrue(f.read().startswith("<!doctype html>"))
        code, _, _ = self.shell('"$1" report - <&-')
        self.assertEqual(code, 3)

    def test_environment_does_not_change_output(self):
        expected = self.ok("report", self.results)
        for env in ({"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}, {"TZ": "Not/AZone"},
                    {"HOME": None}, {"TERM": "xterm", "NO_COLOR": "1"}, {"PATH": ""}):
            self.assertEqual(self.ok("report", self.results, env=lib.environment(**env)), expected)

    def test_no_escape_codes_without_a_terminal(self):
        done = lib.nibble("report", self.results, env=lib.environment(TERM="xterm-256color"))
        self.assertNotIn("\x1b", done.out + done.err)


class Signals(lib.Case):
    def wait_for_handler(self, pid, number):
        """Until the process catches the signal: before that, it would just end by it."""
        status = "/proc/%d/status" % pid
        if not os.path.exists(status):
            self.skipTest("no /proc here")
        for _ in range(6000):
            with open(status) as f:
                caught = [line for line in f if line.startswith("SigCgt:")]
            if int(caught[0].split()[1], 16) >> (number - 1) & 1:
                return
            time.sleep(0.01)
        self.fail("the handler was never installed")

    def test_a_second_signal_ends_a_blocked_read(self):
        """A verb that waits for its input leaves with 5, not by a signal."""
        r, w = os.pipe()
        process = subprocess.Popen([lib.BINARY, "report", "-"], stdin=r, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, env=lib.environment())
        os.close(r)
        try:
            self.wait_for_handler(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
            self.assertEqual(process.wait(timeout=10), 5)
        finally:
            os.close(w)
            process.stderr.close()


if __name__ == "__main__":
    lib.main()
