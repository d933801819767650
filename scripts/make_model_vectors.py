#!/usr/bin/env python3
"""Makes tests/golden/models: tiny random models of every architecture, with the logits that
`transformers` gives for them in float32. Run by hand (needs torch, transformers, safetensors);
the tests only read what is checked in.

    python3 scripts/make_model_vectors.py
"""
import json
import pathlib

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
N_TOKENS = 48

COMMON = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
              bos_token_id=1, eos_token_id=2, attn_implementation="eager")

MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, dict(tie_word_embeddings=False)),
    "llama_bias": (LlamaForCausalLM, LlamaConfig,
                   dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
                        num_key_value_heads=4)),
    "llama3_rope": (LlamaForCausalLM, LlamaConfig,
                    dict(tie_word_embeddings=True, rope_theta=500000.0,
                         rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                           high_freq_factor=4.0,
                                           original_max_position_embeddings=16))),
    "llama_linear": (LlamaForCausalLM, LlamaConfig,
                     dict(tie_word_embeddings=True,
                          rope_scaling=dict(rope_type="linear", factor=2.0))),
    "smollm": (LlamaForCausalLM, LlamaConfig,
               dict(tie_word_embeddings=True, num_attention_heads=3, num_key_value_heads=1,
                    hidden_size=24, rope_theta=100000.0)),
    "mistral": (MistralForCausalLM, MistralConfig,
                dict(tie_word_embeddings=False, sliding_window=7, head_dim=16)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen2_yarn": (Qwen2ForCausalLM, Qwen2Config,
                   dict(tie_word_embeddings=False,
                        rope_scaling=dict(rope_type="yarn", factor=4.0,
                                          original_max_position_embeddings=16))),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(tie_word_embeddings=True, head_dim=16)),
}


def make(name, cls, config_cls, extra):
    torch.manual_seed(1234 + sorted(MODELS).index(name))
    config = config_cls(**{**COMMON, **extra})
    model = cls(config).to(torch.float32).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            # Larger than usual, so that attention is far from uniform and biases count.
            p.copy_(torch.randn_like(p) * (0.3 if p.dim() > 1 else 0.2) + (1.0 if "norm" in key else 0.0))
    tokens = torch.randint(0, config.vocab_size, (1, N_TOKENS))
    with torch.no_grad():
        logits = model(tokens).logits[0]
    folder = ROOT / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    text = json.loads((folder / "config.json").read_text())
    text.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    out = {"tokens": tokens[0].tolist(), "vocab_size": config.vocab_size,
           "logits": [float(f"{v:.7g}") for v in logits.flatten().tolist()]}
    (folder / "logits.json").write_text(json.dumps(out) + "\n")
    print(name, tuple(logits.shape), float(logits.abs().max()))


for name, (cls, config_cls, extra) in MODELS.items():
    make(name, cls, config_cls, extra)
