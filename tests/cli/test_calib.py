"""The options that say what to calibrate with: the set that is recorded is the one asked for, and
what cannot be one is refused by file and line."""

import hashlib
import json
import struct

import lib

MODEL = lib.TinyModel()
WORDS = "the cat sat on the mat, and 12 dogs looked on.\nNobody knew why; it's odd.\n\n".split(" ")
TEXT = " ".join(WORDS[i * i % len(WORDS)] + "ab"[i % 2] for i in range(700))


def set_hash(sequences):
    """SHA-256 of a set, as src/quant/calib/set.h defines it."""
    h = hashlib.sha256(struct.pack("<Q", len(sequences)))
    for ids in sequences:
        h.update(struct.pack("<Q%dI" % len(ids), len(ids), *ids))
    return h.hexdigest()


class Calibration(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_hf(self.path("hf"), MODEL, "bf16")
        self.n_runs = 0

    def ids(self, text):
        path = self.write("piece.txt", text)
        return json.loads(self.ok("tokenize", self.model, path, "--json"))["ids"]

    def command(self, *args):
        return ("quantize", self.model, "-o", self.path("out%d" % self.n_runs), "--scheme",
                "W4A16:g32", "--method", "gptq", *args)

    def recorded(self, *args):
        """What is recorded of the set after a calibration with these options."""
        self.n_runs += 1
        self.ok(*self.command(*args))
        with open(self.path("out%d" % self.n_runs, "nibble-report.json")) as f:
            return json.load(f)["calibration"]

    def test_the_set_is_the_windows_of_the_text(self):
        text = self.write("t.txt", TEXT)
        ids = self.ids(TEXT)
        self.assertGreater(len(ids), 9 * 64)
        got = self.recorded("--calib", text, "--calib-samples", "9", "--calib-len", "64")
        self.assertEqual(got["sha256"], set_hash([ids[64 * i:64 * i + 64] for i in range(9)]))
        self.assertEqual((got["sequences"], got["tokens"], got["held_out_tokens"]), (9, 576, 64))
        (file,) = got["files"]
        self.assertEqual(file["sha256"], hashlib.sha256(TEXT.encode()).hexdigest())
        self.assertEqual(file["bytes"], len(TEXT))

    def test_documents_are_split_and_drawn(self):
        documents = [TEXT[50 * i:50 * i + 45] for i in range(12)]
        text = self.write("d.txt", "\t#\n".join(documents))
        options = ["--calib", text, "--calib-split", "\\t#\\x0a", "--calib-pack", "none",
                   "--calib-len", "32"]
        got = self.recorded(*options)
        all_ids = [self.ids(d)[:32] for d in documents]
        self.assertEqual(got["sha256"], set_hash(all_ids))
        drawn = [self.recorded(*options, "--calib-sample", "random", "--calib-samples", "12",
                               "--seed", seed)["sha256"] for seed in ("5", "6", "5")]
        self.assertEqual(drawn[0], drawn[2])
        self.assertNotEqual(drawn[0], drawn[1])

    def test_several_files_and_fields(self):
        lines = self.write("a,b.jsonl", json.dumps({"text": "no", "body": TEXT[:200]}) + "\n")
        ids = self.write("i.jsonl", "[5, 6, 7, 8]\n")
        first = ["--calib-field", "body", "--calib-len", "16", "--calib-samples", "2"]
        # The comma belongs to the name of a file that is there; another one separates two.
        one = self.recorded("--calib", lines, *first)
        self.assertEqual(one["sha256"], set_hash([self.ids(TEXT[:200])[16 * i:16 * i + 16]
                                                  for i in range(2)]))
        two = [self.recorded("--calib-len", "4", "--calib-samples", "2", *how)
               for how in (["--calib", ids + "," + ids], ["--calib", ids, "--calib", ids])]
        for got in two:
            self.assertEqual(got["sha256"], set_hash([[5, 6, 7, 8]] * 2))
            self.assertEqual(len(got["files"]), 2)

    def test_what_is_refused(self):
        good = self.write("good.txt", TEXT)
        bad = self.write("bad.jsonl", '{"text": "a"}\n\n{"txt": 1}\n')
        empty = self.write("empty.txt", "")
        for code, part, args in (
                (1, "bad.jsonl: line 3: none of messages", ["--calib", bad]),
                (1, "empty.txt: an empty file", ["--calib", empty]),
                (1, "missing.txt", ["--calib", self.path("missing.txt")]),
                (1, "hf: not a regular file", ["--calib", self.model]),
                (2, "--calib-len needs --calib", ["--calib-len", "64"]),
                (2, "--calib-pack needs --calib", ["--calib-pack", "none"]),
                (2, "an empty name", ["--calib", good + ",,"]),
                (2, "--calib-split", ["--calib", good, "--calib-split", ""]),
                (2, "'\\' stands before", ["--calib", good, "--calib-split", "\\q"]),
                (2, "'\\' stands before", ["--calib", good, "--calib-split", "\\x4"]),
                (2, "--calib-field names a member of JSON lines, and no file", [
                    "--calib", good, "--calib-field", "text"]),
                (2, "a byte of 0", ["--calib", good, "--calib-split", "\\x00"]),
                (2, "more than 64 bytes", ["--calib", good, "--calib-split", "=" * 65]),
                (2, "calib-len", ["--calib", good, "--calib-len", "1"]),
                (2, "at most", ["--calib", good, "--calib-len", "1048576", "--calib-samples",
                                "1048576"])):
            self.assertIn(part, self.fails(code, *self.command(*args)))

    def test_a_short_set_is_told_of(self):
        text = self.write("short.txt", "a few words only")
        done = lib.nibble(*self.command("--calib", text))
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("1 sequence, %d tokens; 128 sequences of 2048 were asked for"
                      % len(self.ids("a few words only")), done.err)


if __name__ == "__main__":
    lib.main()
