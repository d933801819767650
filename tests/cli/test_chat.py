"""nibble chat: from a script and on a terminal."""

import json
import os
import pty
import select
import signal
import time

import lib

MODEL = lib.TinyModel(n_layers=1, tied=False)


class Chat(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_gguf(self.path("m.gguf"), MODEL, "q8_0")

    def turns(self, *args, **more):
        return lib.json_lines(self.ok("chat", self.model, "--json", *args, **more))

    def test_lines_and_messages_are_turns(self):
        by_line = self.turns("-n", "6", stdin=b"he is\n\nand the end")  # no newline at the end
        by_flag = self.turns("-n", "6", "-m", "he is", "--message", "and the end")
        self.assertEqual(len(by_line), 2)
        for a, b in zip(by_line, by_flag):
            self.assertEqual(list(a)[:3], ["turn", "message", "text"])
            for key in ("turn", "message", "text", "tokens", "logits_hash", "cached_tokens"):
                self.assertEqual(a[key], b[key], key)
        self.assertEqual([t["turn"] for t in by_line], [1, 2])
        text = self.ok("chat", self.model, "-n", "6", stdin=b"he is\nand the end\n")
        self.assertEqual(text, "".join(t["text"] + "\n" for t in by_line))

    def test_a_turn_is_what_run_answers(self):
        chat = self.turns("-n", "9", "-m", "he is", "--system", "brief")[0]
        run = json.loads(self.ok("run", self.model, "--chat", "he is", "--system", "brief", "-n", "9",
                                 "--json"))
        self.assertEqual((chat["tokens"], chat["logits_hash"]), (run["tokens"], run["logits_hash"]))

    def test_the_conversation_is_kept_and_not_computed_again(self):
        first, second = self.turns("-n", "5", "-m", "he is", "-m", "and")
        self.assertEqual(first["cached_tokens"], 0)
        self.assertGreaterEqual(second["cached_tokens"], first["prompt_tokens"])
        text = "".join("<|im_start|>%s\n%s<|im_end|>\n" % t for t in
                       (("user", "he is"), ("assistant", first["text"]), ("user", "and")))
        fresh = json.loads(self.ok("run", self.model, "--special", "-n", "5", "--json",
                                   text + "<|im_start|>assistant\n"))
        # The bits of a fresh start, where the answer's bytes were characters.
        if "\ufffd" not in first["text"] and "<|" not in first["text"]:
            self.assertEqual((second["tokens"], second["logits_hash"]),
                             (fresh["tokens"], fresh["logits_hash"]))
        self.assertGreater(second["prompt_tokens"], first["prompt_tokens"] + 5)

    def test_a_full_context_stops(self):
        done = lib.nibble("chat", self.model, "--ctx", "80", "-n", "0", "-q", "--presence-penalty", "9",
                          "--json", "-m", "he is", "-m", "and the")
        self.assertEqual(done.code, 4)
        turn = json.loads(done.out)
        self.assertEqual(turn["stop_reason"], "context")
        self.assertEqual(turn["prompt_tokens"] + turn["generated_tokens"], 80)
        warning, error = done.err.splitlines()
        self.assertIn("nibble: warning: the context of 80 tokens is full: stopped", warning)
        self.assertRegex(error, r"m\.gguf: the prompt has \d+ tokens and the context holds 80$")

    def test_the_oldest_turn_is_forgotten(self):
        done = lib.nibble("chat", self.model, "--ctx", "120", "-n", "12", "--ctx-policy",
                          "drop-oldest-turn", "--system", "brief", "--json", "-q",
                          stdin="".join("message number %d\n" % i for i in range(9)).encode())
        self.assertEqual(done.code, 0, done.err)
        turns = lib.json_lines(done.out)
        self.assertEqual(len(turns), 9)
        dropped = sum(t["dropped_turns"] for t in turns)
        self.assertGreater(dropped, 3)
        self.assertEqual(len(done.err.splitlines()), sum(t["dropped_turns"] > 0 for t in turns))
        for line in done.err.splitlines():
            self.assertRegex(line, r"^nibble: warning: the context of 120 tokens was full: forgot the "
                                   r"oldest \d+ turns? of the conversation$")
        for t in turns:
            self.assertLessEqual(t["prompt_tokens"] + t["generated_tokens"], 120)

    def test_what_cannot_be_answered(self):
        keys = lib.gguf_keys(MODEL)
        del keys["tokenizer.chat_template"]
        plain = self.write("plain.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL)))
        line = self.fails(1, "chat", plain, "-m", "a")
        self.assertIn("plain.gguf: the model has no chat template; 'nibble run' completes", line)
        keys["tokenizer.chat_template"] = "{{ raise_exception('no ' + messages[0]['role']) }}"
        strict = self.write("strict.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL)))
        self.assertIn("no user", self.fails(1, "chat", strict, "-m", "a"))
        keys["tokenizer.chat_template"] = "{% if %}"
        broken = self.write("broken.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL)))
        self.assertIn("broken.gguf: chat template", self.fails(1, "chat", broken, "-m", "a"))
        self.assertEqual(self.ok("chat", self.model, stdin=b""), "")


class Terminal(lib.Case):
    """A conversation typed on a terminal."""

    def setUp(self):
        super().setUp()
        self.model = lib.write_gguf(self.path("m.gguf"), MODEL, "q8_0")
        self.pid = None

    def start(self, *args, model=None):
        self.need_terminal()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(lib.BINARY, [lib.BINARY, "chat", model or self.model, *args],
                      dict(lib.environment(), TERM="dumb"))
        self.addCleanup(os.close, self.fd)
        self.addCleanup(self.end)
        return self.until("> ")

    def end(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def until(self, mark):
        """Reads until the output ends with `mark`."""
        shown, deadline = b"", time.time() + 60
        while not shown.endswith(mark.encode()):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.time()))
            self.assertTrue(ready, "waited for %r, saw %r" % (mark, shown))
            shown += os.read(self.fd, 65536)
        return shown.decode(errors="replace")

    def type(self, line, mark="> "):
        os.write(self.fd, line.encode() + b"\n")
        return self.until(mark)

    def saved(self, path):
        with open(path) as f:
            return lib.json_lines(f.read())

    def exit_code(self):
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        self.assertTrue(os.WIFEXITED(status))
        return os.WEXITSTATUS(status)

    def test_a_conversation(self):
        self.start("-n", "4", "--system", "brief")
        self.assertIn("/save FILE", self.type("/help"))
        self.assertIn("no such command", self.type("/nonsense"))
        self.assertIn("generated: 4 tokens", self.type("he is"))
        self.type("one \\", ". ")
        self.assertIn("generated: 4 tokens", self.type("two"))
        saved = self.path("saved.jsonl")
        self.assertIn("saved", self.type("/save " + saved))
        self.assertIn("exists", self.type("/save " + saved))
        messages = self.saved(saved)
        self.assertEqual([m["role"] for m in messages],
                         ["system", "user", "assistant", "user", "assistant"])
        self.assertEqual([messages[i]["content"] for i in (0, 1, 3)], ["brief", "he is", "one \ntwo"])
        self.type("/system other")
        self.type("/clear")
        self.type("/save " + saved + "2")
        self.assertEqual(self.saved(saved + "2"), [{"role": "system", "content": "other"}])
        # Only the beginning of the template is in the cache.
        self.assertRegex(self.type("/clear") + self.type("new"), r"\([0-9] of them cached\)")
        os.write(self.fd, b"/exit\n")
        self.assertEqual(self.exit_code(), 0)

    def test_too_long_a_message_does_not_end_it(self):
        self.start("-n", "2", "--ctx", "64")
        self.assertIn("and the context holds 64", self.type("1" * 100))
        self.assertIn("generated: 2 tokens", self.type("he is"))
        os.write(self.fd, b"\x04")
        self.assertEqual(self.exit_code(), 0)

    def test_an_interrupt_ends_an_answer_then_the_program(self):
        path = lib.write_gguf(self.path("endless.gguf"), lib.endless_model(), "f32")
        self.start("-n", "0", "--ctx", "300000", model=path)
        os.write(self.fd, b"he is\n")
        while b"\n" not in os.read(self.fd, 1):
            pass
        os.read(self.fd, 1)  # the answer has begun
        os.write(self.fd, b"\x03")
        self.assertIn("stopped: interrupted", self.until("> "))
        os.write(self.fd, b"\x03")
        self.assertEqual(self.exit_code(), 5)


if __name__ == "__main__":
    lib.main()
