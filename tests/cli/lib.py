"""Shared by the command-line tests: running nibble, and tiny random models made from nothing.

A test is a unittest file that ends with `lib.main()`. argv[1] is the nibble binary. Only Python's
standard library is used. `lib.skip(why)` ends the whole program with 77 and a SKIP line.

    model = lib.TinyModel()                 # the numbers: random, but always the same
    lib.write_gguf("m.gguf", model, "q4_0")
    lib.write_hf("folder", model, "bf16")   # the same model as a Hugging Face folder
"""

import json
import math
import os
import pty
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from collections import namedtuple

Result = namedtuple("Result", "code out err")

BINARY = None


def skip(why):
    print("SKIP: " + why)
    sys.exit(77)


def main():
    """Runs the unittests of the calling file. No test run at all is a failure."""
    global BINARY
    if len(sys.argv) < 2:
        sys.exit("usage: %s NIBBLE [unittest arguments]" % sys.argv[0])
    BINARY = os.path.abspath(sys.argv.pop(1))
    outcome = unittest.main(exit=False, verbosity=1).result
    if outcome.testsRun == 0:
        sys.exit("no test was run")
    if not outcome.wasSuccessful():
        sys.exit(1)
    if len(outcome.skipped) == outcome.testsRun:
        skip("; ".join(sorted({why for _, why in outcome.skipped})))


def environment(**changes):
    """The environment that tests run in: nothing that would let a test reach the outside."""
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/nonexistent"}
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "LD_LIBRARY_PATH"):
        if name in os.environ:
            env[name] = os.environ[name]
    env.update({k: v for k, v in changes.items() if v is not None})
    for name, value in changes.items():
        if value is None:
            env.pop(name, None)
    return env


def nibble(*args, stdin=b"", env=None, cwd=None, timeout=300, **more):
    """Runs nibble; out and err are text where they are UTF-8, else bytes."""
    done = subprocess.run([BINARY, *args], input=stdin, capture_output=True, cwd=cwd,
                          env=environment() if env is None else env, timeout=timeout, **more)

    def text(raw):
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw

    return Result(done.returncode, text(done.stdout), text(done.stderr))


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


class Case(unittest.TestCase):
    """A test with a folder of its own, and assertions about how nibble ends."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="nibble-test-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def need_terminal(self):
        """Skips the test where there are no pseudo-terminals, as in a bare chroot."""
        try:
            for end in pty.openpty():
                os.close(end)
        except OSError as e:
            self.skipTest("no pseudo-terminal can be had here: %s" % e)

    def write(self, name, content):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
        return path

    def ok(self, *args, **more):
        """Runs nibble, which must succeed; gives its standard output."""
        done = nibble(*args, **more)
        self.assertEqual(done.code, 0, "%s\n%s" % (args, done.err))
        return done.out

    def fails(self, code, *args, **more):
        """Runs nibble, which must end with `code` and one proper line; gives that line."""
        done = nibble(*args, **more)
        self.assertEqual(done.code, code, "%s\n%s%s" % (args, done.out, done.err))
        lines = [line for line in done.err.splitlines() if line.startswith("nibble: ")
                 and not line.startswith("nibble: warning: ")]
        self.assertEqual(len(lines), 1, done.err)
        self.assertLessEqual(len(lines[0]), 1000)
        self.assertTrue(all(32 <= ord(c) < 127 for c in lines[0]), lines[0])
        return lines[0]


# ---- the tiny model ----

# Merges in rank order, each building on bytes or on earlier ones.
_MERGES = """Ġ t|Ġ a|i n|h e|r e|o n|Ġt he|e r|Ġ s|a t|Ġ w|Ġ o|e n|Ġ c|i t|i s|a n|o r|e s|Ġ b|e d|Ġ f|in g|
Ġ p|o u|Ġa n|a l|a r|Ġt o|Ġ m|Ġo f|Ġ in|Ġ d|Ġ h|Ġan d|i c|a s|l e|Ġt h|i on|o m|l l|en t|Ġ n|Ġ l|s t|Ġ re|v e|
Ġ e|r o|l y|Ġb e|Ġ g|Ġ T|c t|Ġ S|i d|o t|Ġ I|u t|e t""".replace("\n", "").split("|")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
                 "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def byte_alphabet():
    """GPT-2's mapping of bytes to printable characters, as a list of 256 characters."""
    plain = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    table, extra = [], 0
    for b in range(256):
        if b in plain:
            table.append(chr(b))
        else:
            table.append(chr(256 + extra))
            extra += 1
    return table


def tokens():
    """The vocabulary: 3 special tokens, 256 bytes, the merges."""
    return SPECIALS + byte_alphabet() + [m.replace(" ", "") for m in _MERGES]


class TinyModel:
    """A random llama-family model: names (Hugging Face's) to (shape, list of floats)."""

    def __init__(self, seed=1, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=128,
                 n_ctx=256, tied=True, arch="llama", scale=1.0):
        self.seed, self.n_layers, self.d_model, self.d_ff = seed, n_layers, d_model, d_ff
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, d_model // n_heads
        self.n_ctx, self.tied, self.arch = n_ctx, tied, arch
        self.tokens = tokens()
        self.vocab_size = len(self.tokens)
        self.rope_theta, self.eps = 10000.0, 1e-5
        self._random = random.Random(seed)
        self.tensors = {}
        kv = n_kv_heads * self.head_dim
        self._matrix("model.embed_tokens.weight", self.vocab_size, d_model, scale)
        for i in range(n_layers):
            p = "model.layers.%d." % i
            self._vector(p + "input_layernorm.weight", d_model)
            self._matrix(p + "self_attn.q_proj.weight", d_model, d_model, scale)
            self._matrix(p + "self_attn.k_proj.weight", kv, d_model, scale)
            self._matrix(p + "self_attn.v_proj.weight", kv, d_model, scale)
            self._matrix(p + "self_attn.o_proj.weight", d_model, d_model, scale)
            self._vector(p + "post_attention_layernorm.weight", d_model)
            self._matrix(p + "mlp.gate_proj.weight", d_ff, d_model, scale)
            self._matrix(p + "mlp.up_proj.weight", d_ff, d_model, scale)
            self._matrix(p + "mlp.down_proj.weight", d_model, d_ff, scale)
        self._vector("model.norm.weight", d_model)
        if not tied:
            self._matrix("lm_head.weight", self.vocab_size, d_model, scale)

    def _f32(self, values):
        return list(struct.unpack("<%df" % len(values), struct.pack("<%df" % len(values), *values)))

    def _matrix(self, name, rows, cols, scale):
        s = scale / math.sqrt(cols)
        gauss = self._random.gauss
        self.tensors[name] = ((rows, cols), self._f32([gauss(0, s) for _ in range(rows * cols)]))

    def _vector(self, name, n):
        uniform = self._random.uniform
        self.tensors[name] = ((n,), self._f32([uniform(0.8, 1.2) for _ in range(n)]))

    def n_parameters(self):
        return sum(len(values) for _, values in self.tensors.values())


def endless_model():
    """A model that never ends greedily: the logit of its end is 0, that of the best is above."""
    model = TinyModel(n_layers=1, tied=False)
    shape, values = model.tensors["lm_head.weight"]
    at = 2 * model.d_model
    values[at:at + model.d_model] = [0.0] * model.d_model
    return model


# ---- numbers to bytes ----

def f16_bytes(values):
    return struct.pack("<%de" % len(values), *values)


def bf16_bytes(values):
    """Round to nearest even on the upper half of binary32."""
    out = []
    for bits in struct.unpack("<%dI" % len(values), struct.pack("<%df" % len(values), *values)):
        out.append((bits + 0x7fff + (bits >> 16 & 1)) >> 16 & 0xffff)
    return struct.pack("<%dH" % len(out), *out)


def f32_bytes(values):
    return struct.pack("<%df" % len(values), *values)


def _f16_round(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


def _pack_nibbles(codes):
    return bytes(codes[j] | codes[j + 16] << 4 for j in range(16))


def _q8_0(block):
    d = _f16_round(max(abs(x) for x in block) / 127)
    codes = [max(-127, min(127, round(x / d))) if d else 0 for x in block]
    return struct.pack("<e32b", d, *codes)


def _q4_0(block):
    top = max(block, key=abs)
    d = _f16_round(top / -8)
    codes = [max(0, min(15, int(x / d + 8.5))) if d else 8 for x in block]
    return struct.pack("<e", d) + _pack_nibbles(codes)


def _q4_1(block):
    low = _f16_round(min(block))
    d = _f16_round((max(block) - min(block)) / 15)
    codes = [max(0, min(15, int((x - low) / d + 0.5))) if d else 0 for x in block]
    return struct.pack("<ee", d, low) + _pack_nibbles(codes)


def _blocks(encode):
    def whole(values):
        assert len(values) % 32 == 0
        return b"".join(encode(values[i:i + 32]) for i in range(0, len(values), 32))
    return whole


# name: (ggml type, bytes of values)
FORMATS = {"f32": (0, f32_bytes), "f16": (1, f16_bytes), "q4_0": (2, _blocks(_q4_0)),
           "q4_1": (3, _blocks(_q4_1)), "q8_0": (8, _blocks(_q8_0)), "bf16": (30, bf16_bytes)}


# ---- GGUF ----

def _gguf_string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _gguf_value(value):
    """A pair's type and value: bool, int (u32), float (f32), str, list of one of them (int: i32)."""
    if isinstance(value, bool):
        return 7, struct.pack("<B", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, (str, bytes)):
        return 8, _gguf_string(value)
    kind = {bool: 7, int: 5, float: 6}.get(type(value[0]), 8) if value else 8
    pack = {7: lambda v: struct.pack("<B", v), 5: lambda v: struct.pack("<i", v),
            6: lambda v: struct.pack("<f", v), 8: _gguf_string}[kind]
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(map(pack, value))


def gguf_keys(model):
    """The key-value pairs of a model, in order; change them before gguf_bytes to break a file."""
    a = model.arch
    return {
        "general.architecture": a,
        "general.name": "tiny",
        a + ".block_count": model.n_layers,
        a + ".context_length": model.n_ctx,
        a + ".embedding_length": model.d_model,
        a + ".feed_forward_length": model.d_ff,
        a + ".attention.head_count": model.n_heads,
        a + ".attention.head_count_kv": model.n_kv_heads,
        a + ".rope.freq_base": model.rope_theta,
        a + ".rope.dimension_count": model.head_dim,
        a + ".attention.layer_norm_rms_epsilon": model.eps,
        a + ".vocab_size": model.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": model.tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(model.tokens) - len(SPECIALS)),
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


_GGUF_NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
               "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
               "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
               "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    top = {"model.embed_tokens.weight": "token_embd.weight",
           "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    return "blk.%s.%s.weight" % (layer, _GGUF_NAMES[rest[:-len(".weight")]])


def _interleave(values, rows, cols, n_heads):
    """The order in which llama-family GGUF files keep the rows of q and k."""
    d = rows // n_heads
    out = []
    for h in range(n_heads):
        for i in range(d // 2):
            for half in range(2):
                r = h * d + half * (d // 2) + i
                out += values[r * cols:(r + 1) * cols]
    return out


def gguf_tensors(model, fmt="f32", embedding=None):
    """[(GGUF name, dims fastest first, ggml type, bytes)]; vectors stay f32."""
    out = []
    for name, (shape, values) in model.tensors.items():
        kind = "f32" if len(shape) == 1 else fmt
        if embedding is not None and name == "model.embed_tokens.weight":
            kind = embedding
        if model.arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = model.n_heads if "q_proj" in name else model.n_kv_heads
            values = _interleave(values, *shape, heads)
        type_id, encode = FORMATS[kind]
        out.append((gguf_name(name), tuple(reversed(shape)), type_id, encode(values)))
    return out


def gguf_bytes(keys, tensors, alignment=32, version=3):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, value in keys.items():
        kind, raw = _gguf_value(value)
        head += _gguf_string(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, dims, type_id, raw in tensors:
        head += _gguf_string(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, type_id,
                                                 len(data))
        data += raw + b"\0" * (-len(raw) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def write_gguf(path, model, fmt="f32", embedding=None):
    with open(path, "wb") as f:
        f.write(gguf_bytes(gguf_keys(model), gguf_tensors(model, fmt, embedding)))
    return path


# ---- Hugging Face ----

_DTYPES = {"f32": ("F32", f32_bytes), "f16": ("F16", f16_bytes), "bf16": ("BF16", bf16_bytes)}


def safetensors_bytes(tensors):
    """{name: (dtype, shape, bytes)} as one file."""
    header, data = {}, []
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def hf_config(model, fmt="f32"):
    names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
             "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    return {
        "architectures": [names[model.arch]], "model_type": model.arch, "hidden_act": "silu",
        "hidden_size": model.d_model, "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers, "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads, "head_dim": model.head_dim,
        "max_position_embeddings": model.n_ctx, "vocab_size": model.vocab_size,
        "rms_norm_eps": model.eps, "rope_theta": model.rope_theta, "rope_scaling": None,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": model.tied,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[fmt],
    }


def tokenizer_json(model):
    def added(i):
        return {"id": i, "content": SPECIALS[i], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i) for i in range(len(SPECIALS))], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(model.tokens)}, "merges": list(_MERGES)},
    }


def hf_files(model, fmt="f32", shards=1):
    """{file name: bytes} of a whole folder."""
    dtype, encode = _DTYPES[fmt]
    tensors = {n: (dtype, shape, encode(values)) for n, (shape, values) in model.tensors.items()}
    files = {
        "config.json": hf_config(model, fmt),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer.json": tokenizer_json(model),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIALS[1],
            "eos_token": SPECIALS[2], "unk_token": SPECIALS[0], "pad_token": SPECIALS[2],
            "model_max_length": model.n_ctx, "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False},
    }
    if shards == 1:
        files["model.safetensors"] = safetensors_bytes(tensors)
    else:
        names = list(tensors)
        where = {}
        for s in range(shards):
            part = names[s * len(names) // shards:(s + 1) * len(names) // shards]
            file = "model-%05d-of-%05d.safetensors" % (s + 1, shards)
            files[file] = safetensors_bytes({n: tensors[n] for n in part})
            where.update({n: file for n in part})
        total = sum(len(raw) for _, _, raw in tensors.values())
        files["model.safetensors.index.json"] = {"metadata": {"total_size": total},
                                                 "weight_map": where}
    return {name: content if isinstance(content, bytes) else json.dumps(content, indent=2).encode()
            for name, content in files.items()}


def write_hf(folder, model, fmt="f32", shards=1):
    os.makedirs(folder, exist_ok=True)
    for name, content in hf_files(model, fmt, shards).items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(content)
    return folder
