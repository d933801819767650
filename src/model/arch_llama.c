/* The llama family: RMSNorm, RoPE, grouped-query attention, SwiGLU; no biases unless the config
 * says so. SmolLM and SmolLM2 are plain llama. Touvron et al., arXiv:2302.13971; Mistral 7B,
 * arXiv:2310.06825. */
#include "model/arch.h"

extern const nb_arch nb_arch_llama, nb_arch_mistral;

const nb_arch nb_arch_llama = {
    .name = "llama",
    .hf_class = "LlamaForCausalLM",
    .gguf_name = "llama",
    .gguf_permuted = true,
    .bias_keys = true,
};

const nb_arch nb_arch_mistral = {
    .name = "mistral",
    .hf_class = "MistralForCausalLM",
    .gguf_name = "llama",
    .gguf_permuted = true,
    .window_always = true,
};
