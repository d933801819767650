/* The Qwen family: llama with biases on q, k, v (2 and 2.5: arXiv:2407.10671, arXiv:2412.15115), or
 * with a norm on each head of q and k (3: arXiv:2505.09388). */
#include "model/arch.h"

extern const nb_arch nb_arch_qwen2, nb_arch_qwen3;

const nb_arch nb_arch_qwen2 = {
    .name = "qwen2",
    .hf_class = "Qwen2ForCausalLM",
    .gguf_name = "qwen2",
    .qkv_bias = true,
    .window_switch = true,
};

const nb_arch nb_arch_qwen3 = {
    .name = "qwen3",
    .hf_class = "Qwen3ForCausalLM",
    .gguf_name = "qwen3",
    .bias_keys = true,
    .qk_norm = true,
    .window_switch = true,
};
