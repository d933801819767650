#!/usr/bin/env python3
"""Loads what nibble writes in the program that each layout comes from, and compares logits.

    scripts/check_homes.py MODEL [--nibble PATH] [--library PATH] [--rows REGEX] [--calib TEXT]
                           [--exact] [--work FOLDER]

MODEL, a Hugging Face folder of 16-bit floats, is quantized into every layout; each output is opened
by its home and by libnibble (a shared library, through ctypes), both read the same 64 tokens, and
the largest difference of any logit is printed as a share of the largest logit. Needs torch,
transformers, compressed-tensors, gguf, and for their own rows GPTQModel, bitsandbytes and
llama-cpp-python (LLAMA_CPP_LIB_PATH names a folder with another build of libllama); a row whose
home is not there is printed as such. Not part of the tests.

What has to hold, row by row:

  weights      Homes that compute in binary32 from the weights they read: nibble in mode f. Both sum
               the same products in another order. The bound is 5e-4 of the largest logit. Such
               sums differ by 1e-6 to 6e-6 after 30 blocks, and by up to 1e-4 in a model of 2 bits
               without calibration, which amplifies everything.
  half         Homes as they come, where weights, or all sums, are rounded to 16 bits (BF16 among
               them, of 8 significant bits): 1e-1, which models of 2 bits come near to.
  activations  Homes that round activations too, by rules that differ from nibble's (absmax / 127.5
               instead of 127, codes down to -128; scales in 16 bits; blocks of 256 for Q4_K): as
               computed by default. The bound is three times what nibble's own rounding changes: two
               roundings of the same numbers, theirs in longer blocks.

Formats with blocks of 128 or 256 columns are written from a small model of random weights with
MODEL's tokenizer, as MODEL need not have such rows. Results are kept in FOLDER/homes.json: a run
that was cut goes on where it was.
"""
import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import warnings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

N_TOKENS = 64
TEXT = """The lighthouse keeper counted the ships as they passed, one by one, and wrote their names
in a book that nobody had asked him to keep. In winter there were few: 3 in December, 11 in January,
and none at all in the week when the ice closed the harbour. "It is quiet work," he said, "but the
numbers have to be right, or what would be the use of them?" Then he lit the lamp again."""

EXACT = "--exact" in sys.argv
BOUND = {"weights": 5e-4, "half": 1e-1}

# scheme, flags, homes
HF, DQ, GM = "transformers", "transformers, dequantize", "gptqmodel"
GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
OF_256 = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "FP8_BLOCK")
OUTPUTS = [(s, "", (HF,)) for s in (
    "W8A16", "W8A16:g32", "W4A16:channel", "W4A16:g32", "W4A16:g64", "W3A16:g32", "W2A16:g32")]
OUTPUTS += [(s, "", (HF, DQ)) for s in ("W8A16:asym", "W4A16:g32,asym")]
OUTPUTS += [(s, "", (DQ,)) for s in (
    "W4A16:channel,asym", "W4A16:g64,asym", "W3A16:g64,asym", "W2A16:g32,asym")]
OUTPUTS += [(s, "", (HF,)) for s in (
    "W8A8", "W8A8:asym", "W4A8:channel", "W4A8:g32", "W8A8:static", "FP8", "FP8:tensor",
    "FP8_BLOCK", "FP8:static", "FP8:tensor,static", "NF4", "NF4:single")]
OUTPUTS += [(s, "--to gptq", (GM,)) for s in (
    "W8A16:g32", "W4A16:channel", "W4A16:g32", "W4A16:g64", "W3A16:g32", "W2A16:g32")]
OUTPUTS += [(s, "--to gptq_v2", (GM,)) for s in (
    "W8A16:channel", "W4A16:g32", "W8A16:g32,asym", "W4A16:g32,asym", "W4A16:channel,asym",
    "W3A16:g64,asym", "W2A16:g32,asym")]
OUTPUTS += [(s, "--to awq", (GM,)) for s in ("W4A16:g32,asym", "W4A16:channel,asym", "W4A16:g64")]
OUTPUTS += [(s, "", (HF, "llama.cpp")) for s in GGUF]
OUTPUTS += [
    ("W4A16:g32,asym", "--method hqq", (DQ,)),
    ("W4A16:g32", "--method gptq", (HF,)),
    ("W4A16:g32", "--to gptq --method gptq", (GM,)),
    ("Q4_0", "--method gptq", (HF, "llama.cpp")),
]
ROWS = [(scheme, flags, home) for scheme, flags, homes in OUTPUTS for home in homes]


# ---- nibble ----

class LmOptions(ctypes.Structure):
    _fields_ = [("threads", ctypes.c_int), ("isa", ctypes.c_char_p), ("compute", ctypes.c_char_p),
                ("kv", ctypes.c_char_p), ("n_ctx", ctypes.c_int64)]


class LmInfo(ctypes.Structure):
    _fields_ = [("path", ctypes.c_char_p), ("architecture", ctypes.c_char_p),
                ("compute", ctypes.c_char_p), ("isa", ctypes.c_char_p), ("kv", ctypes.c_char_p),
                ("threads", ctypes.c_int), ("n_ctx", ctypes.c_int64),
                ("n_ctx_model", ctypes.c_int64), ("vocab_size", ctypes.c_int64),
                ("rest", ctypes.c_int64 * 8)]


class Err(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 1000)]


class Nibble:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.nb_session_logits.restype = ctypes.POINTER(ctypes.c_float)

    def call(self, name, *args):
        err = Err()
        if getattr(self.lib, name)(*args, ctypes.byref(err)) != 0:
            raise RuntimeError(err.text.decode())

    def opened(self, path, compute):
        lm = ctypes.c_void_p()
        options = LmOptions(0, None, compute.encode(), b"f32", 2 * N_TOKENS)
        self.call("nb_lm_open", ctypes.byref(lm), path.encode(), ctypes.byref(options))
        return lm

    def tokens(self, path, text):
        lm = self.opened(path, "f")
        ids, n = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_int64()
        self.call("nb_lm_encode", lm, text.encode(), ctypes.c_size_t(len(text)),
                  ctypes.c_bool(False), ctypes.c_bool(False), ctypes.byref(ids), ctypes.byref(n))
        out = ids[:n.value]
        self.lib.nb_free(ids)
        self.lib.nb_lm_close(lm)
        return out

    def logits(self, path, ids, compute):
        """[len(ids)][vocabulary], token by token."""
        import numpy as np
        lm = self.opened(path, compute)
        info = LmInfo()
        self.lib.nb_lm_describe(lm, ctypes.byref(info))
        session = ctypes.c_void_p()
        self.call("nb_session_open", ctypes.byref(session), lm)
        rows = []
        for token in ids:
            self.call("nb_session_feed", session, ctypes.byref(ctypes.c_int32(token)),
                      ctypes.c_int64(1))
            row = self.lib.nb_session_logits(session, None)
            rows.append(np.ctypeslib.as_array(row, (info.vocab_size,)).copy())
        self.lib.nb_session_close(session)
        self.lib.nb_lm_close(lm)
        return np.stack(rows)


# ---- homes: each yields (kind, logits) ----

def from_torch(model, ids):
    import torch
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def bitsandbytes_floats(model):
    """{module: its weight as bitsandbytes decodes it, in binary32}"""
    import torch
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            from bitsandbytes.functional import dequantize_4bit
            state = module.weight.quant_state
            kept, state.dtype = state.dtype, torch.float32
            found[name] = dequantize_4bit(module.weight.data, state)
            state.dtype = kept
    return found


def transformers_home(path, ids):
    import torch
    from transformers import AutoModelForCausalLM
    if path.endswith(".gguf"):
        model = AutoModelForCausalLM.from_pretrained(
            os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()
    floats = bitsandbytes_floats(model)
    if floats:  # which computes in BF16, scales too
        yield "half", from_torch(model, ids)
    for name, weight in floats.items():
        linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
        linear.weight.data = weight
        model.set_submodule(name, linear)
    if floats:
        torch.nn.Module.float(model)
    modules = [m for m in model.modules() if hasattr(m, "quantization_scheme")]
    if any(m.quantization_scheme.input_activations is not None for m in modules):
        yield "activations", from_torch(model, ids)
        for m in modules:
            m.quantization_scheme.input_activations = None
    yield "weights", from_torch(model, ids)


def dequantizing_home(path, ids):
    """transformers, told to turn codes into floats while it reads them: compressed-tensors 0.20
    cannot load asymmetric packed codes otherwise, its own neither. It computes weights in the type
    of the scales; so the library's decompressor is asked once more, in binary32."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True))
    yield "half", from_torch(model.eval(), ids)
    config = json.load(open(os.path.join(path, "config.json")))["quantization_config"]
    del config["quant_method"]
    scheme, = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    tensors = load_file(os.path.join(path, "model.safetensors"))
    for scale in [n for n in tensors if n.endswith(".weight_scale")]:
        module = scale[:-len("weight_scale")]
        parts = {n[len(module):]: tensors[n] for n in tensors if n.startswith(module)}
        parts["weight_scale"] = parts["weight_scale"].float()
        parts["weight_shape"] = torch.Size(parts["weight_shape"].tolist())
        weight = compressor.decompress(parts, scheme)["weight"]
        assert weight.dtype == torch.float32
        model.get_submodule(module[:-1]).weight.data = weight
    yield "weights", from_torch(model, ids)


def own_asymmetric(work):
    """What transformers says to asymmetric packed codes that compressed-tensors wrote itself."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    path = os.path.join(work, "own")
    model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=128, vocab_size=64,
                                         num_hidden_layers=1, num_attention_heads=2))
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group",
               "group_size": 32}
    config = QuantizationConfig.model_validate({
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"], "format": "pack-quantized", "quantization_status": "frozen"})
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = torch.full_like(module.weight_scale, 0.01)
            module.weight_zero_point.data = torch.zeros_like(module.weight_zero_point)
    ModelCompressor(quantization_config=config).compress_model(model)
    model.save_pretrained(path)
    written = os.path.join(path, "config.json")
    told = json.load(open(written))
    told["quantization_config"] = {**json.loads(config.model_dump_json()),
                                   "quant_method": "compressed-tensors"}
    with open(written, "w") as f:
        json.dump(told, f)
    try:
        AutoModelForCausalLM.from_pretrained(path)
        return "loaded"
    except Exception as e:  # what it says is the answer
        return "%s: %s" % (type(e).__name__, str(e).splitlines()[0])
    finally:
        shutil.rmtree(path)


def gptqmodel_home(path, ids):
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    awq = json.load(open(os.path.join(path, "config.json")))["quantization_config"][
        "quant_method"] == "awq"
    model = GPTQModel.load(path, device="cpu", dtype=torch.float16,
                           backend=BACKEND.TORCH_AWQ if awq else BACKEND.TORCH).model
    if not EXACT:
        yield "half", from_torch(model, ids)
    # The same weights without rounding them to 16 bits.
    for module in list(model.modules()) if awq else []:
        for name, child in list(module.named_children()):
            if hasattr(child, "qzeros"):
                linear = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                linear.weight.data = dequantize_gemm(child.qweight, child.qzeros,
                                                     child.scales.float(), child.bits,
                                                     child.group_size).T.contiguous()
                setattr(module, name, linear)
    yield "weights", from_torch(torch.nn.Module.float(model), ids)


def llama_home(path, ids):
    import llama_cpp as lc
    import numpy as np
    silent = lc.llama_log_callback(lambda *a: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        raise RuntimeError("llama_model_load_from_file failed")
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 2 * N_TOKENS
    params.n_threads = params.n_threads_batch = 2
    params.type_k = params.type_v = 0  # F32
    context = lc.llama_init_from_model(model, params)
    batch = lc.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    if lc.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    n = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    out = np.stack([np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), (n,)).copy()
                    for i in range(len(ids))])
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    lc.llama_model_free(model)
    yield "activations", out


HOMES = {HF: transformers_home, DQ: dequantizing_home, GM: gptqmodel_home,
         "llama.cpp": llama_home}


# ---- rows ----

def random_model(like, out):
    """Rows of 256 and 512 columns under the tokenizer of another model."""
    import torch
    from safetensors.torch import save_file
    config = json.load(open(os.path.join(like, "config.json")))
    config.update(hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                  tie_word_embeddings=True)
    g = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=g).mul(shape[-1] ** -0.5).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], 256),
               "model.norm.weight": torch.ones(256, dtype=torch.bfloat16)}
    for i in range(2):
        p = "model.layers.%d." % i
        for name, n, k in (("self_attn.q_proj", 256, 256), ("self_attn.k_proj", 128, 256),
                           ("self_attn.v_proj", 128, 256), ("self_attn.o_proj", 256, 256),
                           ("mlp.gate_proj", 512, 256), ("mlp.up_proj", 512, 256),
                           ("mlp.down_proj", 256, 512)):
            tensors[p + name + ".weight"] = normal(n, k)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[p + name + ".weight"] = torch.ones(256, dtype=torch.bfloat16)
    os.makedirs(out, exist_ok=True)
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f)
    for name in os.listdir(like):
        if "tokenizer" in name:
            shutil.copy(os.path.join(like, name), out)
    return out


def quantize(a, model, out, scheme, flags):
    command = [a.nibble, "quantize", model, "-o", out, "--scheme", scheme, "--force", "-q"]
    command += flags.split()
    if "gptq" in flags.split()[1::2] and "--method" in flags or "static" in scheme:
        if a.calib is None:
            return "needs --calib"
        command += ["--calib", a.calib, "--calib-samples", "4", "--calib-len", "512"]
    p = subprocess.run(command, capture_output=True, text=True)
    return p.stderr.strip() if p.returncode else None


def share(got, want):
    """The largest difference, of the largest logit. Embeddings may have rows for no token."""
    import numpy as np
    n = min(got.shape[1], want.shape[1])
    return float(np.abs(got[:, :n] - want[:, :n]).max() / np.abs(want[:, :n]).max())


class Output:
    """What nibble wrote last, and its logits: rows that differ in their home alone share it."""

    def __init__(self, a, nibble, ids):
        self.a, self.nibble, self.ids, self.made, self.path = a, nibble, ids, None, None

    def make(self, scheme, flags):
        if self.made == (scheme, flags):
            return
        self.remove()
        self.path = os.path.join(self.a.work, "model.gguf" if scheme in GGUF else "model")
        model = self.a.random if scheme in OF_256 else self.a.model
        self.problem = quantize(self.a, model, self.path, scheme, flags)
        self.made, self.kept = (scheme, flags), {}

    def logits(self, mode):
        if mode not in self.kept:
            self.kept[mode] = self.nibble.logits(self.path, self.ids, mode)
        return self.kept[mode]

    def remove(self):
        if self.path and os.path.isdir(self.path):
            shutil.rmtree(self.path)
        elif self.path and os.path.exists(self.path):
            os.remove(self.path)


def measure(out, scheme, flags, home):
    row = {"scheme": scheme, "flags": flags, "home": home, "results": []}
    out.make(scheme, flags)
    if out.problem:
        return {**row, "problem": "not written: " + out.problem.splitlines()[-1]}
    try:
        for kind, got in HOMES[home](out.path, out.ids):
            want = out.logits("f" if kind in BOUND else "auto")
            bound = BOUND.get(kind) or 3 * share(out.logits("auto"), out.logits("f"))
            row["results"].append({
                "kind": kind, "diff": share(got, want), "bound": bound,
                "top1": float((got.argmax(1) == want.argmax(1)).mean())})
    except Exception as e:  # whatever a home says is the result of its row
        row["problem"] = "not loaded: " + ("%s: %s" % (type(e).__name__, e)).splitlines()[0]
    gc.collect()
    return row


def table(rows):
    lines = ["| scheme | flags | home | compared | largest difference | bound | same first choice |",
             "|---|---|---|---|--:|--:|--:|"]
    for r in rows:
        flags = "`%s`" % r["flags"] if r["flags"] else ""
        head = "| %s | %s | %s | " % (r["scheme"], flags, r["home"])
        for x in r.get("results", []):
            lines.append(head + "%s | %.1e | %.1e | %d of %d |" % (
                x["kind"], x["diff"], x["bound"], round(x["top1"] * N_TOKENS), N_TOKENS))
        if "problem" in r:
            lines.append(head + "%s | | | |" % r["problem"].replace("|", "/"))
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model")
    p.add_argument("--nibble", default="build/release/nibble")
    p.add_argument("--library", default="build/release/libnibble.so")
    p.add_argument("--rows", default="", help="only rows whose 'scheme flags home' matches")
    p.add_argument("--calib", help="a text, for rows that need one")
    p.add_argument("--exact", action="store_true",
                   help="leave out what GPTQModel computes in 16 bits: slow on a CPU")
    p.add_argument("--work", default="homes-work")
    a = p.parse_args()
    os.makedirs(a.work, exist_ok=True)
    import torch
    torch.set_num_threads(2)
    a.random = random_model(a.model, os.path.join(a.work, "random"))
    nibble = Nibble(os.path.abspath(a.library))
    ids = nibble.tokens(a.model, TEXT)[:N_TOKENS]
    assert len(ids) == N_TOKENS
    out = Output(a, nibble, ids)
    kept = os.path.join(a.work, "homes.json")
    rows = json.load(open(kept)) if os.path.exists(kept) else []
    done = {(r["scheme"], r["flags"], r["home"]) for r in rows}
    for row in ROWS:
        if row in done or not re.search(a.rows, " ".join(row)):
            continue
        rows.append(measure(out, *row))
        print("\n".join(table(rows[-1:]).splitlines()[2:]), file=sys.stderr, flush=True)
        with open(kept + ".tmp", "w") as f:
            json.dump(rows, f, indent=1)
        os.replace(kept + ".tmp", kept)
    out.remove()
    order = {r: i for i, r in enumerate(ROWS)}
    rows.sort(key=lambda r: order.get((r["scheme"], r["flags"], r["home"]), 0))
    print(table(rows))
    print("\nasymmetric packed codes that compressed-tensors wrote itself, in transformers: "
          + own_asymmetric(a.work))
    names = ("torch", "transformers", "compressed-tensors", "gguf", "gptqmodel", "bitsandbytes",
             "llama_cpp_python")
    versions = []
    for name in names:
        try:
            versions.append("%s %s" % (name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            pass
    print("\n" + ", ".join(versions))
    bad = [x for r in rows for x in r.get("results", []) if not x["diff"] <= x["bound"]]
    sys.exit(1 if bad or not any(r.get("results") for r in rows) else 0)


if __name__ == "__main__":
    main()
