/* Perplexity and divergence: what a model says of a text, and how far that is from what its
 * original says. Protocols are named, because numbers of different ones cannot be compared.
 *
 *   llama   windows of 512; the first half is context, the second is scored (positions 256..510
 *           predict 257..511), as llama.cpp's perplexity tool counts
 *   paper   windows of 2,048, all 2,047 targets, as GPTQ and its successors count
 *
 * The text is tokenized once, as it is, without BOS; windows do not overlap. */
#ifndef NB_EVAL_SCORE_H
#define NB_EVAL_SCORE_H

#include "model/forward.h"
#include "text/tokenizer.h"

typedef struct {
    const char *name;
    int64_t n_ctx;
    int64_t first_scored; /* first position whose prediction counts */
} nb_protocol;

extern const nb_protocol nb_protocols[]; /* ends with name == NULL */
const nb_protocol *nb_protocol_by_name(const char *name);

/* A model made ready to be scored. */
typedef struct {
    nb_model *model;
    const char *name; /* the caller's: put before messages about this model; NULL: nothing is */
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    float *hidden; /* [n_ctx][d_model]: states of the window's scored positions */
    float *logits; /* [NB_SCORE_ROWS][vocab] */
} nb_scorer;

#define NB_SCORE_ROWS   64  /* positions whose logits are held at a time */
#define NB_SCORE_TOKENS 512 /* tokens of a forward step */

nb_status nb_scorer_init(nb_scorer *s, nb_model *model, const nb_kernels *kernels, nb_pool *pool,
                         const nb_protocol *protocol, nb_kv_format kv_cell, nb_err *err);
void nb_scorer_free(nb_scorer *s);

typedef struct {
    int64_t n_windows, n_tokens;      /* n_tokens: scored positions */
    double perplexity, perplexity_se; /* the error by the delta method: ppl * se of the mean loss */
    bool has_base;
    double base_perplexity;
    double kl_mean, kl_mean_se, kl_median, kl_p99, kl_max; /* KL(base || model), nats */
    double top1, top1_se; /* share of positions with the base's most likely token */
    uint64_t logits_hash; /* of the scored positions (docs/numerics.md) */
    double seconds;       /* of this model's own work */
} nb_score;

/* Called after each window of each model; `done` of `total` windows. False stops with
 * NB_INTERRUPTED. */
typedef bool nb_score_progress(void *context, int64_t done, int64_t total);

/* Scores n_models models on the same windows (base may be NULL), window by window, so that the
 * base runs once. All share a vocabulary. At most max_windows windows (0: all). results [n_models].
 * NB_DATA when the text has not one whole window, when a token is outside a model's vocabulary, or
 * when logits are not finite: what such a model is worth is no number. */
nb_status nb_score_run(nb_scorer *models, int64_t n_models, nb_scorer *base,
                       const nb_protocol *protocol, const int32_t *tokens, int64_t n_tokens,
                       int64_t max_windows, nb_score_progress *progress, void *context,
                       nb_score *results, nb_err *err);

#endif
