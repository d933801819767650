/* A network's shape and constants: what config.json or a GGUF's keys say, checked once.
 *
 * Unknown architectures, activations, rope scalings are refused by name, never guessed; sizes that
 * disagree with the tensors are refused when the model is loaded. */
#ifndef NB_MODEL_CONFIG_H
#define NB_MODEL_CONFIG_H

#include "model/arch.h"
#include "kernel/kernel.h"
#include "store/store.h"

typedef enum {
    NB_ROPE_DEFAULT, /* theta_i = base^(-2i/d) */
    NB_ROPE_LINEAR,
    NB_ROPE_DYNAMIC, /* NTK; the context length is fixed at load (A12) */
    NB_ROPE_LLAMA3,
    NB_ROPE_YARN,
    NB_ROPE_FACTORS, /* a tensor of divisors (GGUF's rope_freqs.weight) */
} nb_rope_type;

typedef struct {
    nb_rope_type type;
    double base; /* rope_theta */
    double factor;
    int64_t original_n_ctx;                   /* llama3, yarn */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;                  /* multiplies cos and sin; 0: the type's default */
    double mscale, mscale_all_dim;            /* yarn; 0: not given */
    bool truncate;                            /* yarn: floor and ceil the correction range */
} nb_rope;

typedef struct {
    const nb_arch *arch;
    int64_t n_layers, n_heads, n_kv_heads, head_dim;
    int64_t d_model, d_ff, vocab_size;
    int64_t n_ctx;          /* the length the model was trained for */
    int64_t rot_dim;        /* dimensions of a head that rotate */
    int64_t sliding_window; /* 0: none; else every query sees this many positions */
    float rms_eps;
    nb_rope rope;
    bool tied_head; /* logits use the token embedding */
    bool qkv_bias;  /* biases on q, k, v */
    bool o_bias;    /* bias on the attention output */
    bool mlp_bias;
    bool qk_norm;           /* RMSNorm on each head of q and k */
    int64_t bos, eos;       /* -1: none */
    nb_kv_scheme kv_scheme; /* what the folder says of the key-value cache, */
    /* and its static scales, which a model that is open has: F16 [n_layers][n_kv_heads], the
     * model's own; NULL: an FP8 cache finds its own */
    const uint16_t *k_scales, *v_scales;
    char warning[128]; /* what was ignored, to be shown to the user; "": nothing */
} nb_config;

/* Reads and checks. NB_DATA names the key; NB_UNSUPPORTED names what nibble does not do. */
nb_status nb_config_read(nb_store *store, nb_config *out, nb_err *err);

/* The format of the cache where nobody asks for one: what the folder says, else F16. */
static inline nb_kv_format nb_config_kv_format(const nb_config *c)
{
    return c->kv_scheme != NB_KV_SCHEME_NONE ? NB_KV_FP8 : NB_KV_F16;
}
/* Bytes of KV cache for one position: 2 * n_layers * n_kv_heads * head_dim * bytes of a cell. */
int64_t nb_config_kv_bytes(const nb_config *c, nb_kv_format cell);
/* Of one sequence besides: what packed formats keep of recent positions, at most, between two
 * steps. */
int64_t nb_config_kv_recent_bytes(const nb_config *c, nb_kv_format cell);

/* config.json for a folder made from this model. Free with json_decref. */
nb_status nb_config_to_json(const nb_config *c, json_t **out, nb_err *err);
/* Appends the GGUF keys general.architecture and ARCH.*; adds their number to *n_kv. */
nb_status nb_config_to_gguf(const nb_config *c, nb_buf *kv, int64_t *n_kv, nb_err *err);

#endif
