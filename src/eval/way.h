/* A way to compute the logits of a text. All ways give the same bits (docs/numerics.md): this runs
 * one of them, and verify.h compares them. */
#ifndef NB_EVAL_WAY_H
#define NB_EVAL_WAY_H

#include "eval/probe.h"

#define NB_WAY_BATCH_MAX 32

typedef struct {
    const char *isa; /* its name, borrowed; NULL: what the mask has */
    unsigned mask;   /* of instruction sets */
    int threads;
    int64_t lead; /* tokens that come first, in one step */
    int64_t cut;  /* tokens of each step after them; 0: all at once */
    bool decode;  /* the logits of every step at once, the whole batch's; else all at the end */
    int batch;    /* sequences of each step, the text in the middle of others */
    bool flush;   /* the caller has set flush-to-zero */
} nb_way;

/* "avx2, 3 threads, cuts of 7, beside 6 others", in a buffer of the caller's. */
typedef struct {
    char text[160];
} nb_way_text;
nb_way_text nb_way_describe(const nb_way *way);

typedef struct {
    const nb_model *model;
    nb_kv_format kv;
    const int32_t *tokens; /* of the text, which starts at position 0 */
    int64_t n_tokens;      /* at most model->n_ctx */
    /* Called after each step; false stops with NB_INTERRUPTED. May be NULL. */
    bool (*go_on)(void *context);
    void *context;
} nb_way_job;

/* hash[i] is nb_logits_hash of token i's logits. `probe`, unless NULL, is empty: it is then made
 * and filled, and the caller's to free whatever comes back. NB_DATA when a step changed the
 * floating-point environment of its caller. */
nb_status nb_way_run(const nb_way *way, const nb_way_job *job, nb_probe *probe, uint64_t *hash,
                     nb_err *err);

#endif
