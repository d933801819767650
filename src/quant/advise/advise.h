/* What a model takes before anything is done with it: parameters, bytes under each scheme, cache,
 * activations, speed, and which scheme to begin with. Arithmetic alone: from the numbers of a
 * config, for models that nibble runs and for mixtures of experts that it does not run yet. */
#ifndef NB_QUANT_ADVISE_ADVISE_H
#define NB_QUANT_ADVISE_ADVISE_H

#include "base/json.h"
#include "model/model.h"
#include "quant/recipe/scheme.h"

/* The measures that decide. Dense models have no experts. */
typedef struct {
    char type[64]; /* model_type */
    bool runs;     /* in nibble, today */
    int64_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, n_ctx;
    int64_t n_moe_layers;        /* of the layers; their feed-forward part is experts */
    int64_t n_experts, n_active; /* of such a layer; that a token meets */
    int64_t d_expert, d_shared;  /* widths of an expert, and of the one that every token meets */
    bool tied_head, qkv_bias, o_bias, mlp_bias, qk_norm;
} nb_advise_shape;

void nb_advise_shape_of(nb_advise_shape *out, const nb_config *c);
/* From config.json. NB_DATA names the key; NB_UNSUPPORTED an architecture whose arithmetic is not
 * that of llama's family. */
nb_status nb_advise_shape_read(nb_advise_shape *out, const json_t *config, nb_err *err);

int64_t nb_advise_params(const nb_advise_shape *s);
int64_t nb_advise_active_params(const nb_advise_shape *s); /* that a token meets */
/* 2 * n_layers * n_kv_heads * (bytes of a head's cells), scales included. */
int64_t nb_advise_kv_bytes(const nb_advise_shape *s, nb_kv_format cell);
/* Buffers of a step, about. */
int64_t nb_advise_activation_bytes(const nb_advise_shape *s, int64_t batch);

typedef enum {
    NB_LOSS_NONE,
    NB_LOSS_SMALL,
    NB_LOSS_VISIBLE,
    NB_LOSS_LARGE,
    NB_LOSS_BROKEN
} nb_loss;
const char *nb_loss_name(nb_loss loss);
/* Of a mean KL: below 0.005, 0.05, 0.3, 1, and above. */
nb_loss nb_loss_of(double kl);

/* Mean KL divergence, on SmolLM2-135M (NB_ADVISE_KL_SOURCE): measured, or predicted from what was
 * measured of schemes like it. */
typedef struct {
    double kl;
    bool measured;
} nb_advise_loss;

/* advise/kl.c, whose numbers are those of advise/kl.def. By "rtn", "gptq", "autoround"; NAN for a
 * scheme that is no candidate. */
nb_advise_loss nb_advise_loss_of(const char *scheme, const char *method);
/* Of integers in groups (0: of a whole row), by rtn or by a method that learned from a text. */
nb_advise_loss nb_advise_loss_like(int bits, bool zeros, int64_t group, bool calibrated);

/* A way to keep the weights. */
typedef struct {
    const char *scheme;  /* "BF16", or as --scheme takes it */
    int bits;            /* of a weight's code */
    nb_advise_loss loss; /* by rtn */
    bool possible;       /* groups divide the rows */
    int64_t bytes;       /* of the tensor files, about */
    double bpw;
    double active_bytes; /* that one token reads of the weights */
    nb_compute compute;
    bool a8; /* activations have 8 bits */
} nb_candidate;

#define NB_ADVISE_KL_SOURCE                                                                        \
    "SmolLM2-135M-Instruct off-grid, round to nearest, WikiText-2 test, 16 windows of 2048"
#define NB_N_CANDIDATES 18
/* The name of candidate i, and the width of its codes. */
const char *nb_advise_scheme(int i, int *bits);
/* Fills them all, widest first. */
nb_status nb_advise_candidates(nb_candidate out[NB_N_CANDIDATES], const nb_advise_shape *s,
                               nb_err *err);

/* The same of any scheme, without its loss. NB_USAGE: it is none. */
nb_status nb_advise_candidate_like(nb_candidate *out, const nb_advise_shape *s, const char *scheme,
                                   nb_err *err);

/* What the model is already. */
typedef struct {
    bool quantized;  /* false: 16 bits or more, and nothing else here is set */
    bool bits_known; /* else they are taken for 4 */
    char what[120];  /* "gptq, 4 bits in groups of 128" */
    nb_candidate as; /* what it takes as it is */
} nb_advise_source;

/* From the quantization_config of a config.json; sizes are about. NB_DATA names the key. */
nb_status nb_advise_source_read(nb_advise_source *out, const nb_advise_shape *s,
                                const json_t *config, nb_err *err);
/* From the files themselves. */
void nb_advise_source_of(nb_advise_source *out, const nb_advise_shape *s, const nb_store *store);

/* What the machine can do; 0: not measured. */
typedef struct {
    double read, int8_ops, fma_ops; /* bytes and operations a second */
} nb_advise_machine;
/* Tokens a second, 0 without a machine: shares of the machine's limits that nibble reaches as a
 * rule (0.7 of reading, 0.5 of computing). */
double nb_advise_decode(const nb_advise_shape *s, const nb_candidate *c, const nb_advise_machine *m,
                        int64_t ctx, nb_kv_format kv);
double nb_advise_prefill(const nb_advise_shape *s, const nb_candidate *c,
                         const nb_advise_machine *m);

/* ---- the decision ---- */

typedef enum { NB_FOR_INFERENCE, NB_FOR_TRAINING } nb_purpose;
typedef enum {
    NB_ACCURACY_EXACT,
    NB_ACCURACY_HIGH,
    NB_ACCURACY_BALANCED,
    NB_ACCURACY_SMALL
} nb_accuracy;

typedef struct {
    nb_purpose purpose;
    nb_accuracy accuracy;
    int64_t memory, ctx, batch;
} nb_advise_request;

typedef enum {
    NB_LEAF_KEEP,         /* 16 bits fit and nothing may be lost, or it is quantized already and
                             fits: do not quantize */
    NB_LEAF_8_BIT,        /* 8-bit first, PTQ first */
    NB_LEAF_8_BIT_SERVER, /* many sequences at once: activations of 8 bits as well */
    NB_LEAF_4_BIT,
    NB_LEAF_4_BIT_FIRST, /* asked for a balance, and more would fit */
    NB_LEAF_3_BIT,
    NB_LEAF_2_BIT,
    NB_LEAF_NODES, /* nothing fits: more memory, or more machines */
    NB_LEAF_TRAIN_FULL,
    NB_LEAF_TRAIN_QAT,
    NB_LEAF_TRAIN_QLORA,
    NB_LEAF_TRAIN_NODES,
    NB_N_LEAVES
} nb_leaf;
const char *nb_leaf_name(nb_leaf leaf);

typedef struct {
    nb_leaf leaf;
    const char *scheme;  /* "" for none */
    const char *method;  /* "" for none */
    nb_advise_loss loss; /* of scheme by method; NAN for none */
    const char *because; /* a sentence */
    const char *kv;      /* "f16" or "int8" */
    const char *kv_because;
    bool fits_16;              /* in 16 bits */
    bool fits_source;          /* as it is, where that is quantized */
    int64_t nodes_16, nodes_4; /* machines of this memory that BF16 and 4 bits need */
} nb_advice;

/* Weights, cache of batch * ctx tokens, activations, and the program. */
int64_t nb_advise_memory(const nb_advise_shape *s, const nb_candidate *c, int64_t ctx,
                         int64_t batch, nb_kv_format kv);
/* Weights and cache are chosen together: an INT8 cache is taken, too, where it makes room for
 * weights that lose less. Of a model that is quantized already, nothing is advised that is not
 * smaller than it. */
void nb_advise_decide(nb_advice *out, const nb_advise_shape *s,
                      const nb_candidate candidates[NB_N_CANDIDATES],
                      const nb_advise_source *source, const nb_advise_request *request);
/* Whether a candidate has a point: source is NULL or not quantized, or larger by a twentieth. */
bool nb_advise_gains(const nb_advise_source *source, const nb_candidate *c);

#endif
