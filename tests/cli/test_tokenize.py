"""nibble tokenize: against a reference written here, and there and back."""

import json
import random
import re

import lib

MODEL = lib.TinyModel(n_layers=1)

# GPT-2's pattern for ASCII text, after single digits were split off.
PATTERN = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


def reference(text):
    """Byte-level BPE of ASCII text, the slow and obvious way."""
    ids = {t: i for i, t in enumerate(MODEL.tokens)}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(lib.tokenizer_json(MODEL)["model"]["merges"])}
    alphabet = lib.byte_alphabet()
    out = []
    for piece in re.findall(r"[0-9]|[^0-9]+", text):
        for word in [piece] if piece.isdigit() else PATTERN.findall(piece):
            parts = [alphabet[b] for b in word.encode()]
            while True:
                pairs = [(ranks[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in ranks]
                if not pairs:
                    break
                _, i = min(pairs)
                parts[i:i + 2] = ["".join(parts[i:i + 2])]
            out += [ids[p] for p in parts]
    return out


class Tokenize(lib.Case):
    def setUp(self):
        super().setUp()
        self.model = lib.write_gguf(self.path("m.gguf"), MODEL, "q4_0")

    def ids(self, *args, **more):
        return json.loads(self.ok("tokenize", self.model, "--json", *args, **more))["ids"]

    def test_ids_of_ascii_text(self):
        r = random.Random(7)
        words = ["the", "of", " and", "Station", "12", "3.5", "'s", "it's", "\n", "  ", "\t", "--",
                 "anthing", "<|im_end|>", "he", "The the", "a"]
        for _ in range(30):
            text = "".join(r.choice(words) + r.choice(["", " ", " "]) for _ in range(r.randrange(60)))
            path = self.write("t", text)
            expected = reference(text)
            self.assertEqual(self.ids(path), expected, text)
            self.assertEqual(self.ok("tokenize", self.model, path),
                             " ".join(map(str, expected)) + "\n")

    def test_gguf_and_folder_agree(self):
        folder = lib.write_hf(self.path("hf"), MODEL, "bf16")
        text = "Zwölf Boxkämpfer jagen 42 Füchse; 東京タワー \U0001F600\r\n\x00\x07 end".encode()
        path = self.write("t", text)
        self.assertEqual(self.ok("tokenize", self.model, path), self.ok("tokenize", folder, path))

    def test_there_and_back(self):
        r = random.Random(3)
        for _ in range(20):
            text = "".join(chr(r.choice([r.randrange(32, 127), r.randrange(0xa0, 0xd800),
                                         r.randrange(0xe000, 0x110000), 10, 0]))
                           for _ in range(r.randrange(1, 200)))
            ids = self.ok("tokenize", self.model, "-", stdin=text.encode())
            done = lib.nibble("tokenize", self.model, "--decode", "-", stdin=ids.encode())
            self.assertEqual((done.code, done.out), (0, text))
            as_json = self.ok("tokenize", self.model, "-", "--json", stdin=text.encode())
            back = self.ok("tokenize", self.model, "-d", "-", "--json", stdin=as_json.encode())
            self.assertEqual(json.loads(back), {"text": text})

    def test_any_bytes_are_encoded(self):
        raw = bytes(range(256)) * 3
        ids = self.ids(self.write("t", raw))
        back = {c: b for b, c in enumerate(lib.byte_alphabet())}
        decoded = b"".join(bytes(back[c] for c in MODEL.tokens[i]) for i in ids)
        self.assertEqual(decoded, raw)

    def test_bytes_without_a_token_are_left_out_with_a_warning(self):
        keys = lib.gguf_keys(MODEL)
        keys["tokenizer.ggml.tokens"] = ["[gone]" if t == "!" else t for t in MODEL.tokens]
        model = self.write("gap.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL, "q4_0")))
        warning = ("nibble: warning: %d bytes have no token in this vocabulary and were left out, "
                   "as Hugging Face does\n")
        for text, left in (("the! song!!", "the song"), ("!!", ""), ("-!-", "--")):
            n, ids = text.count("!"), reference(left)
            for args, out in (((), " ".join(map(str, ids)) + "\n"),
                              (("--count",), "%d\n" % len(ids)),
                              (("--json",), {"ids": ids, "count": len(ids), "left_out": n}),
                              (("--json", "--count"), {"count": len(ids), "left_out": n})):
                done = lib.nibble("tokenize", model, "--quiet", "--text=" + text, *args)
                got = json.loads(done.out) if "--json" in args else done.out
                self.assertEqual((done.code, got, done.err), (0, out, warning % n))
        done = lib.nibble("tokenize", model, "--json", "--text", "the song")
        self.assertEqual((done.code, "left_out" in done.out, done.err), (0, False, ""))

    def test_special_tokens_are_text_unless_asked(self):
        text = "<|im_start|>user\nhi<|im_end|>"
        plain, special = self.ids("--text", text), self.ids("--text", text, "--special")
        self.assertEqual(plain, reference(text))
        self.assertEqual(special, [1] + reference("user\nhi") + [2])
        ids = " ".join(map(str, special))
        self.assertEqual(self.ok("tokenize", self.model, "-d", "--text", ids), "user\nhi")
        self.assertEqual(self.ok("tokenize", self.model, "-d", "--special", "--text", ids), text)

    def test_count(self):
        for text in ("", "the end of the song", "a" * 1000):
            n = len(reference(text))
            self.assertEqual(self.ok("tokenize", self.model, "--count", "--text", text), "%d\n" % n)
            out = self.ok("tokenize", self.model, "--count", "--json", "--text", text)
            self.assertEqual(json.loads(out), {"count": n})
            self.assertEqual(json.loads(self.ok("tokenize", self.model, "--json", "--text", text))
                             ["count"], n)

    def test_a_megabyte_of_one_letter(self):
        """Linear: quadratic work would run into the test's time limit."""
        out = self.ok("tokenize", self.model, "-", "--count", stdin=b"a" * (1 << 20))
        self.assertEqual(out, "%d\n" % (1 << 20))

    def test_bos_only_where_the_tokenizer_adds_it(self):
        keys = lib.gguf_keys(MODEL)
        keys["tokenizer.ggml.add_bos_token"] = True
        path = self.write("bos.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL, "q4_0")))
        expected = reference("hello")
        for model, args, ids in ((path, [], expected), (path, ["--add-bos"], [1] + expected),
                                 (self.model, ["--add-bos"], expected)):
            out = self.ok("tokenize", model, "--json", "--text", "hello", *args)
            self.assertEqual(json.loads(out)["ids"], ids)

    def test_ids_in_many_spellings(self):
        expected = self.ok("tokenize", self.model, "-d", "--text", "265 266 267")
        for spelling in ("265,266,267", "[265, 266, 267]", "265\n266\t267\r\n",
                         '{"ids":[265,266,267],"count":3}', ' {"ids": [265, 266, 267]}'):
            self.assertEqual(self.ok("tokenize", self.model, "-d", "--text", spelling), expected)
        self.assertEqual(self.ok("tokenize", self.model, "-d", "--text", ""), "")

    def test_bad_ids(self):
        for text in ("x", "1 x", "1.5", "-1", "99999999999999999999", "2147483648", "1e3", "0x1",
                     "320", "2147483647", "{", '{"ids":1}', '{"ids":[1.5]}', '{"ids":["1"]}',
                     '{"ids":[-1]}', '{"ids":[4294967297]}', "{}", '{"ids":[320]}', "1 \x00 2"):
            path = self.write("ids", text)
            with self.subTest(text=text):
                self.fails(1, "tokenize", self.model, "-d", path)

    def test_an_id_past_the_vocabulary_is_told_from_one_that_is_none(self):
        for text, is_id in (("320", True), ("49151", True), ("2147483647", True),
                            ("2147483648", False), ("12x", False)):
            message = self.fails(1, "tokenize", self.model, "-d", "--text", text)
            self.assertEqual("a token id was expected" in message, not is_id, message)

    def test_usage(self):
        path = self.write("t", "x")
        self.assertIn("no text", self.fails(2, "tokenize", self.model))
        self.assertIn("not both", self.fails(2, "tokenize", self.model, path, "--text", "x"))
        self.fails(1, "tokenize", self.model, self.path("absent"))
        self.fails(1, "tokenize", self.model, self.folder)
        self.fails(1, "tokenize", self.path("absent.gguf"), path)

    def test_a_tokenizer_of_an_unknown_kind_is_refused_by_name(self):
        for key, value in (("tokenizer.ggml.model", "nonsense"), ("tokenizer.ggml.pre", "nonsense")):
            keys = lib.gguf_keys(MODEL)
            keys[key] = value
            path = self.write("bad.gguf", lib.gguf_bytes(keys, lib.gguf_tensors(MODEL, "q4_0")))
            self.assertIn("nonsense", self.fails(1, "tokenize", path, "--text", "x"))


if __name__ == "__main__":
    lib.main()
