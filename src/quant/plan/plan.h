/* What becomes of each weight of a model on its way into another file, decided before anything is
 * read or written: its new format, and how it gets there. Quantizing and converting differ in
 * this plan and in nothing else. */
#ifndef NB_QUANT_PLAN_PLAN_H
#define NB_QUANT_PLAN_PLAN_H

#include "base/arena.h"
#include "model/model.h"
#include "quant/recipe/recipe.h"
#include "store/names.h"

typedef enum {
    NB_HOW_COPY,     /* the bytes as they are */
    NB_HOW_REPACK,   /* codes and scales as they are, in another layout: no float is touched */
    NB_HOW_WIDEN,    /* other floats that hold every value exactly */
    NB_HOW_ROUND,    /* other floats, each rounded once */
    NB_HOW_QUANTIZE, /* codes are chosen anew */
    NB_HOW_MAKE,     /* not in the source: made from the config */
} nb_how;

const char *nb_how_name(nb_how how);

/* What --dtype says: AUTO keeps what the other container can hold, and makes floats of the rest;
 * KEEP refuses the rest. */
typedef enum { NB_DTYPE_AUTO, NB_DTYPE_KEEP, NB_DTYPE_F32, NB_DTYPE_F16, NB_DTYPE_BF16 } nb_dtype;

/* New static scales for an FP8 key-value cache: one for the keys and one for the values of a layer,
 * or of each of its KV heads. */
typedef enum { NB_KV_SCALES_NONE, NB_KV_SCALES_LAYER, NB_KV_SCALES_HEAD } nb_kv_scales_kind;

typedef struct {
    nb_store_kind to;
    nb_layout layout;               /* of a folder's quantized weights */
    const nb_scheme *scheme;        /* quantize: every linear layer; NULL: convert */
    const nb_recipe *recipe;        /* quantize: by rules; `scheme` is that of nb_recipe_main */
    const struct nb_preset *preset; /* whose rules these are; NULL: nobody's */
    nb_dtype dtype;                 /* convert */
    nb_kv_scales_kind kv;
    bool requantize; /* convert: where codes cannot be carried over, choose new ones */
} nb_plan_request;

typedef struct {
    nb_plan_request request;
    nb_config config;         /* of the source; RoPE factors resolved as the target wants them */
    nb_weight *weights;       /* [n] to be written, in this order */
    const nb_weight **from;   /* [n] of the source; NULL: NB_HOW_MAKE */
    nb_how *how;              /* [n] */
    const nb_rule **rule;     /* [n] that decided; NULL: none did */
    const nb_format **wanted; /* [n] what rows did not fit into (fallback.h); NULL: they did */
    int64_t n;
    nb_name *index;          /* [n] the weights by name */
    nb_float_type main_type; /* of what is neither quantized nor kept: 16 bits, the source's own */
    int64_t group_size;      /* of request.scheme; NB_GROUP_CHANNEL: one a row */
    int64_t n_quantized;     /* NB_HOW_QUANTIZE */
    int64_t n_requantized;   /* of those, the ones whose source has codes already */
    int64_t n_rounded;       /* NB_HOW_ROUND */
    int64_t n_params, bytes; /* of all weights */
    float *kv_scales;        /* of the weights from first_kv on (plan/kv.h); NULL: none are new */
    int64_t first_kv;
    float *rope_factors; /* rope_freqs.weight of NB_HOW_MAKE: [rot_dim / 2] */
    char **notes;        /* what a user should know, one line each */
    int n_notes;
    char *warning; /* what other programs cannot do with the output; NULL: nothing is known */
    nb_arena arena;
} nb_plan;

/* Plans for a store that stays open. Checks that config and weights belong together. Errors name
 * the file and the weight. `{0}` is an empty plan. */
nb_status nb_plan_make(nb_plan *plan, nb_store *store, const nb_plan_request *request, nb_err *err);
void nb_plan_free(nb_plan *plan);

/* Where the weight of this name stands in the plan; -1: nowhere. */
int64_t nb_plan_find(const nb_plan *plan, const char *name);
/* Where that of a linear layer of a block does. */
int64_t nb_plan_linear(const nb_plan *plan, int64_t layer, nb_linear_id id);

/* How the codes of weight i are chosen: as its rule says, or `otherwise`. */
static inline const nb_method *nb_plan_method(const nb_plan *p, int64_t i,
                                              const nb_method *otherwise)
{
    return p->rule[i] != NULL && p->rule[i]->method != NULL ? p->rule[i]->method : otherwise;
}

/* Bits per weight of all tensors. */
static inline double nb_plan_bpw(const nb_plan *p)
{
    return p->n_params > 0 ? 8.0 * (double)p->bytes / (double)p->n_params : 0.0;
}

/* Of the linear layers of the blocks alone: codes, scales and zero points. */
double nb_plan_linear_bpw(const nb_plan *p);

/* Whether weight i has static activations whose scale is not known yet: a walk finds it. */
static inline bool nb_plan_waits(const nb_plan *plan, int64_t i)
{
    return plan->weights[i].act.is_static && plan->weights[i].act.scale == 0;
}

#endif
