#!/usr/bin/env python3
"""How the golden vectors of the tokenizer came to be: ids by the Hugging Face `tokenizers` library.

    make_tokenizer_vectors.py OUT_FOLDER [MODEL.gguf DATA_FOLDER]

Writes tokenizer_tiny.json (tokenizers of a few hundred tokens, texts and their ids) and
unicode_classes.json (hashes over all code points); with the model, SmolLM2-135M-Instruct, and the
folder of evaluation texts also tokenizer_smollm2.json (counts and hashes of ids of long texts).
Needs: pip install tokenizers gguf. Made with tokenizers 0.23.3.
"""

import hashlib
import json
import sys
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
            "use_regex": use_regex}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


CHAINS = {
    "gpt2": byte_level(True),
    "gpt2_prefix": byte_level(True, True),
    "smollm": sequence(digits(True), byte_level(True)),
    "digit_runs_prefix": sequence(digits(False), byte_level(True, True)),
    "llama3": sequence(split(LLAMA3), byte_level(False)),
    "qwen2": sequence(split(QWEN2), byte_level(False)),
    "o200k": sequence(split(O200K), byte_level(False)),
    "deepseek_v3": sequence(*map(split, DEEPSEEK), byte_level(False)),
    "empty_matches": sequence(split(r"x*"), byte_level(False)),
    "lines": sequence(split(r"^\s*\S+$|\bab"), sequence(byte_level(False))),
}


def byte_chars():
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in own]
    return {b: chr(b) for b in own} | {b: chr(256 + i) for i, b in enumerate(rest)}


SAMPLE = ("the quick brown fox isn't there; they'll say we've seen that I'm not the one who'd go. "
          "HELLO Hello hello world worlds 12 123 2024 1999 == != -> :: ();\n\n    return x + y;\n\t"
          "naïve café façade résumé Ünïcödé ǅ привет мир как дела 你好世界 你好 こんにちは 안녕하세요 "
          "مرحبا بالعالم שלום नमस्ते ๑๒๓ e\u0301 o\u0308 ... --- aaaa aaaaaaaa 🙂🙂 👩‍👩‍👧 \u00a0 \u3000 ")


def train(n_merges):
    """The usual greedy loop over a sample; ties go to the pair met first."""
    chars = byte_chars()
    words = [[chars[b] for b in w.encode()] for w in words_of(SAMPLE * 2)]
    merges = []
    while len(merges) < n_merges:
        counts = {}
        for w in words:
            for pair in zip(w, w[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=counts.get)
        if counts[best] < 2:
            break
        merges.append(best)
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = [w[i] + w[i + 1]]
                i += 1
    vocab = {}
    for t in [*chars.values(), *("".join(m) for m in merges)]:
        vocab.setdefault(t, len(vocab))
    return vocab, merges


def words_of(text):
    p = pre_tokenizers.Split(Regex(GPT2), "isolated")
    return [piece for piece, _ in p.pre_tokenize_str(text)]


TEXTS = [
    "", " ", "  ", "\n", "Hello world", "I'm  12 ok\n", "We'LL see THEY'RE x", "it'ſ ſ's 'S",
    "  leading and trailing  ", "a\n\n  b\r\n\tc", "12345 6.78", "price: $1,234.50!!",
    "foo_bar(baz)->x;", "naïve café ÀÉ", "你好，世界123", "こんにちは world", "Привет мир",
    "٠١٢٣ ①② Ⅷ½ ๑๒๓४५", "e\u0301 o\u0308\u0323 o\u0323\u0308 \u1e9b\u0323 각 \u1112\u1161\u11ab",
    "\u212b \u2126 \u0344 \u0958 \U0001d15e", "a\u00a0b\u3000c\u2028d\u0085e\u180ef\u200bg\ufeffh",
    "🙂👩‍👩‍👧 \U0001f1e9\U0001f1ea", "tabs\t\tand  \t mixed \r\r\n\n x", "aaaaaaaaaaaaaaaaaaaaa",
    "a" * 300 + " " * 100 + "\n" * 77 + "aa" * 50, "x" * 60 + "ab\nabx\n  ab", "ab ab\n ab \nab",
    "   'll 'tis rock'n'roll 's's''s", "\u1c8a\ua7cd\U00010d40\U0001ccf0\U0002ebf0\U00011de0x",
    "ǅǈ ªº ʰ ⅷ ⓐ \u0300a", "((([[[{{{<<<===>>>!!!???", "\x00\x01\x7f", "#!/usr/bin/env\n/// x //\n",
    "<s>hi</s> <s> hi  </s>x", "a<tool>b <tool> c", "word cword word. wordé", "<mask> <mask>  \n y",
    "<s><s></s>", "<|long|>|<|long", "<s", "e\u0301lan \u00e9lan elan", "Abc<user>DEF <user>",
    "été élan\u0301", "I<user><s>'m", " <user> word <mask>'s",
    "=!= -?!> !x?y\u00a4 :!?:", "!?!", "=!" * 40 + "=", "?" * 100,
]

ADDED = [
    AddedToken("<s>", special=True), AddedToken("</s>", special=True, normalized=False),
    AddedToken("<tool>", normalized=False), AddedToken("word", single_word=True),
    AddedToken("<mask>", special=True, lstrip=True, rstrip=True),
    AddedToken("<|long", normalized=False), AddedToken("<|long|>", special=True),
    AddedToken("e\u0301lan", normalized=True), AddedToken("<user>", lstrip=True, normalized=False),
    AddedToken("<s><s>", normalized=False),
]


def added_json(first):
    return [{"id": first + i, "content": a.content, "single_word": a.single_word,
             "lstrip": a.lstrip, "rstrip": a.rstrip, "normalized": a.normalized,
             "special": a.special} for i, a in enumerate(ADDED)]


def tokenizer_json(chain, vocab, merges, normalizer=None, post=None, added=(), **model):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added),
            "normalizer": normalizer, "pre_tokenizer": chain, "post_processor": post,
            "decoder": byte_level(True),
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": [list(m) for m in merges]} | model}


def ids_of(tok, text, parse_special, bos=False):
    tok.encode_special_tokens = not parse_special
    return tok.encode(text, add_special_tokens=bos).ids


def tiny(out):
    vocab, merges = train(330)

    def template(before, after):
        names = {"<s>": len(vocab), "</s>": len(vocab) + 1}
        token = [[{"SpecialToken": {"id": t, "type_id": 0}} for t in side]
                 for side in (before, after)]
        return {"type": "TemplateProcessing",
                "single": [*token[0], {"Sequence": {"id": "A", "type_id": 0}}, *token[1]],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {t: {"id": t, "ids": [names[t]], "tokens": [t]}
                                   for t in before + after}}

    added = added_json(len(vocab))
    nfc = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    # A vocabulary without some bytes: the unknown token stands for them, alone or fused, or they
    # are left out and their neighbours merge.
    holes = {t: i for t, i in vocab.items() if t not in ("!", "?", "\xa4")}
    kept = [m for m in merges if all(c not in "".join(m) for c in "!?\xa4")]
    holes = {t: i for t, i in holes.items() if i < 256 or any(t == "".join(m) for m in kept)}
    variants = [{"name": name, "tokenizer": {"pre_tokenizer": c}} for name, c in CHAINS.items()]
    variants += [
        {"name": "added", "tokenizer": {"added_tokens": added}},
        {"name": "added_nfc_bos", "tokenizer": {
            "added_tokens": added, "normalizer": nfc, "pre_tokenizer": CHAINS["qwen2"],
            "post_processor": {"type": "Sequence",
                               "processors": [byte_level(True), template(["<s>"], [])]}}},
        {"name": "added_end", "tokenizer": {
            "added_tokens": added, "post_processor": template([], ["</s>"])}},
        {"name": "added_bos_end", "tokenizer": {
            "added_tokens": added, "post_processor": template(["<s>"], ["</s>"])}},
        {"name": "added_prefix", "tokenizer": {"added_tokens": added,
                                               "pre_tokenizer": CHAINS["gpt2_prefix"]}},
        {"name": "nfc", "tokenizer": {"normalizer": {"type": "NFC"}}},
        {"name": "ignore_merges", "model": {"ignore_merges": True},
         "extra_vocab": {"Hello": len(vocab), "Ġworld": len(vocab) + 1, "ÐŁ": len(vocab) + 2}},
        {"name": "left_out", "model": {"vocab": holes, "merges": [list(m) for m in kept]}},
        {"name": "unknown", "model": {"unk_token": "a", "vocab": holes,
                                      "merges": [list(m) for m in kept]}},
        {"name": "unknown_fused", "model": {"unk_token": "a", "fuse_unk": True, "vocab": holes,
                                            "merges": [list(m) for m in kept]}},
    ]
    for v in variants:
        full = tokenizer_json(CHAINS["gpt2"], dict(vocab), merges) | v["tokenizer"] \
            if "tokenizer" in v else tokenizer_json(CHAINS["gpt2"], dict(vocab), merges)
        full["model"] |= v.get("model", {})
        full["model"]["vocab"] |= v.get("extra_vocab", {})
        tok = Tokenizer.from_str(json.dumps(full))
        special = bool(full["added_tokens"])
        v["ids"] = [ids_of(tok, t, False) for t in TEXTS]
        if special:
            v["ids_special"] = [ids_of(tok, t, True, True) for t in TEXTS]
        # The library spells the letters of added tokens in bytes when it decodes, so that one with
        # an accent comes out broken. We give its content; nothing to compare there.
        accented = {a["id"] for a in full["added_tokens"] if not a["content"].isascii()}
        v["decoded"] = [None if accented & set(i) else tok.decode(i, skip_special_tokens=True)
                        for i in v["ids"]]
    model = tokenizer_json(None, vocab, merges)["model"]
    doc = {"about": f"ids by Hugging Face tokenizers {tokenizers.__version__}; "
                    "scripts/make_tokenizer_vectors.py. A variant replaces members of `base`.",
           "base": tokenizer_json(CHAINS["gpt2"], {}, []) | {"model": model},
           "texts": TEXTS, "variants": variants}
    (out / "tokenizer_tiny.json").write_text(dump_rows(doc))


def dump_rows(doc):
    """One line for each element of the top-level lists."""
    parts = []
    for key, value in doc.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(v, ensure_ascii=True) for v in value)
            parts.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=True)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def check_published(golden):
    """The alphabet and the splits of pretokenizers.json came from elsewhere: compare them."""
    alphabet = json.loads((golden / "byte_level_alphabet.json").read_text())["code_points"]
    assert alphabet == [ord(byte_chars()[b]) for b in range(256)]
    doc = json.loads((golden / "pretokenizers.json").read_text())
    for name, patterns in doc["patterns"].items():
        chain = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns])
        for case in doc["cases"]:
            assert [p for p, _ in chain.pre_tokenize_str(case["text"])] == case[name], case["text"]


# ---- classes of all code points ----

SCALARS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern):
    remove = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for i in range(0, len(SCALARS), 4096):
        block = SCALARS[i:i + 4096]
        kept = set()
        for piece, _ in remove.pre_tokenize_str("".join(map(chr, block))):
            kept.update(map(ord, piece))
        found.update(c for c in block if c not in kept)
    return found


def classes(out):
    letter, number, space = members(r"\p{L}"), members(r"\p{N}"), members(r"\s")
    split_digits = pre_tokenizers.Digits(individual_digits=True)
    numeric = {c for c in SCALARS if len(split_digits.pre_tokenize_str("x" + chr(c))) == 2}
    tok = Tokenizer(models.BPE(vocab={"\x01": 0}, merges=[]))
    tok.add_tokens([AddedToken("xyz", single_word=True, normalized=False)])
    word = {c for c in SCALARS if not tok.encode(chr(c) + "xyz").ids}
    of_class = bytes(1 if c in letter else 2 if c in number else 3 if c in space else 0
                     for c in range(0x110000))
    doc = {"about": f"SHA-256 over one byte per code point, U+0000 to U+10FFFF, by Hugging Face "
                    f"tokenizers {tokenizers.__version__}: class 0 other, 1 letter, 2 number, "
                    "3 space; 1 where Digits cuts; 1 where a single_word token may not touch",
           "class": hashlib.sha256(of_class).hexdigest(),
           "numeric": hashlib.sha256(bytes(c in numeric for c in range(0x110000))).hexdigest(),
           "word": hashlib.sha256(bytes(c in word for c in range(0x110000))).hexdigest(),
           "counts": [len(letter), len(number), len(space), len(numeric), len(word)]}
    (out / "unicode_classes.json").write_text(json.dumps(doc, indent=1) + "\n")


# ---- long texts on the real model; tests/text/test_tokenizer_model.c makes the same ----

class Lcg:
    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def random_bytes(n):
    r = Lcg(1)
    return bytes(r.below(256) for _ in range(n))


RANGES = [(0x61, 0x7A), (0x41, 0x5A), (0x30, 0x39), (0x21, 0x7E), (0xC0, 0x17F), (0x300, 0x36F),
          (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x660, 0x669),
          (0x905, 0x939), (0x966, 0x96F), (0xE01, 0xE30), (0x10D0, 0x10F0), (0x1100, 0x11FF),
          (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2150, 0x218B), (0x2200, 0x22FF), (0x3041, 0x3096),
          (0x30A1, 0x30FA), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
          (0xFF01, 0xFF5E), (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F),
          (0x20000, 0x2A6DF), (0x10D40, 0x10D85), (0x0, 0x10FFFF)]
BETWEEN = [" ", " ", " ", "", "\n", "  ", "\t", "\r\n", "'s", "'LL", " '", "\u00a0", "\n\n  ",
           "<|im_start|>", " <|im_end|> ", "_"]


def mixed_scripts(n):
    r, parts, size = Lcg(2), [], 0
    while size < n:
        low, high = RANGES[r.below(len(RANGES))]
        for _ in range(1 + r.below(12)):
            c = low + r.below(high - low + 1)
            if 0xD800 <= c < 0xE000:
                c = 0xFFFD
            parts.append(chr(c))
            size += len(chr(c).encode())
        parts.append(BETWEEN[r.below(len(BETWEEN))])
        size += len(parts[-1].encode())
    return "".join(parts)


def from_gguf(path):
    """A reference tokenizer from the keys alone, as the published tokenizer.json is built: without
    an unknown token, so that the library leaves out the bytes that the vocabulary lacks."""
    import gguf
    fields = gguf.GGUFReader(path).fields

    def texts(key):
        f = fields[key]
        return [bytes(f.parts[i]).decode() for i in f.data]

    tokens, merges = texts("tokenizer.ggml.tokens"), texts("tokenizer.ggml.merges")
    f = fields["tokenizer.ggml.token_type"]
    types = [int(f.parts[i][0]) for i in f.data]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)},
                               merges=[tuple(m.split(" ")) for m in merges]))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False)
                            for t, k in zip(tokens, types) if k == 3])
    return tok


def pre_tokenizer(chain):
    return Tokenizer.from_str(json.dumps(tokenizer_json(chain, {}, []))).pre_tokenizer


def smollm2(out, model, data):
    tok = from_gguf(model)
    raw = random_bytes(1_000_000)
    texts = {name: (data / name).read_bytes().decode() for name in
             ("wikitext2-test.raw.txt", "calib-c4.txt", "calib-code.txt", "calib-wiki.txt")}
    texts |= {"random bytes, latin-1": raw.decode("latin-1"),
              "random bytes, replaced": raw.decode("utf-8", "replace"),
              "mixed scripts": mixed_scripts(1_000_000)}
    rows = []
    for chain in ("smollm", "gpt2", "llama3", "qwen2"):
        tok.pre_tokenizer = pre_tokenizer(CHAINS[chain])
        for name, text in texts.items():
            if chain != "smollm" and name.startswith("calib"):
                continue
            for parse_special in (False, True):
                ids = ids_of(tok, text, parse_special)
                digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
                row = {"text": name, "chain": chain, "parse_special": parse_special,
                       "n": len(ids), "sha256": digest}
                print(row)
                rows.append(row)
    doc = {"about": f"ids by Hugging Face tokenizers {tokenizers.__version__} with the vocabulary "
                    "of SmolLM2-135M-Instruct: count, and SHA-256 of the decimal ids joined by one "
                    "space", "rows": rows}
    (out / "tokenizer_smollm2.json").write_text(dump_rows(doc))


def main():
    out = Path(sys.argv[1])
    check_published(Path(__file__).resolve().parent.parent / "tests" / "golden")
    tiny(out)
    classes(out)
    if len(sys.argv) > 3:
        smollm2(out, sys.argv[2], Path(sys.argv[3]))


if __name__ == "__main__":
    main()
