/* Architectures as data: what distinguishes one decoder from another is a description, not code.
 * To add one: a const nb_arch in its family's file and a line in archs.def. */
#ifndef NB_MODEL_ARCH_H
#define NB_MODEL_ARCH_H

#include "base/status.h"

typedef struct {
    const char *name;      /* model_type in config.json: "llama" */
    const char *hf_class;  /* architectures[0]: "LlamaForCausalLM" */
    const char *gguf_name; /* general.architecture */
    bool gguf_permuted;    /* GGUF stores the rows of q and k interleaved */
    bool qkv_bias;         /* q, k, v always have biases */
    bool bias_keys;        /* attention_bias and mlp_bias are read from the config */
    bool qk_norm;          /* RMSNorm on each head of q and k before RoPE */
    bool tied_default;     /* tie_word_embeddings when the key is missing */
    bool window_always;    /* sliding_window applies whenever it is set (mistral) */
    bool window_switch;    /* sliding_window applies only if use_sliding_window (qwen2, qwen3) */
} nb_arch;

/* All of them, ending with NULL. */
extern const nb_arch *const nb_archs[];

const nb_arch *nb_arch_by_hf(const char *model_type);  /* NULL: unknown */
const nb_arch *nb_arch_by_class(const char *hf_class); /* NULL: unknown */
const nb_arch *nb_arch_by_gguf(const char *name);      /* NULL: unknown */

#endif
