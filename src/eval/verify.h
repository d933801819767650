/* The bit matrix: the same logits from every way to compute them.
 *
 * Ways differ in how the text is cut into steps (one piece, 64, 7, 1, and decoding), how many
 * sequences are in a step (1, 2, 7, 32), threads, and the instruction set. All are compared with
 * one of them, token by token; what differs is narrowed down to the fewest differences between two
 * ways, and to the first operation that gives other numbers. */
#ifndef NB_EVAL_VERIFY_H
#define NB_EVAL_VERIFY_H

#include "eval/way.h"

typedef struct {
    const char *name; /* borrowed */
    unsigned mask;
    int64_t n_tokens; /* of the text, for this set */
    bool slow;        /* too slow for many ways on a large model */
} nb_verify_isa;

#define NB_VERIFY_MAX_ISAS    8
#define NB_VERIFY_MAX_THREADS 8
#define NB_VERIFY_MAX_WAYS    256 /* of one instruction set */

/* Which ways. A cell is one model, as packed for a compute mode, with one format of the cache. */
typedef struct {
    const nb_verify_isa *isas; /* the first one takes the most tokens: it is compared with */
    int n_isas;
    const int *threads;
    int n_threads;
    /* Every combination. Without it, cells in depth take every pair of values of two axes, others
     * every value of an axis, and slow instruction sets one way, another in each cell; and steps
     * of one token come after a piece that leaves NB_VERIFY_STEPS of them. */
    bool full;
} nb_verify_plan;

#define NB_VERIFY_STEPS 8

/* Ways of the cell on plan->isas[isa], in the order they run; out [NB_VERIFY_MAX_WAYS] or NULL. */
int nb_verify_ways(const nb_verify_plan *plan, int isa, int64_t cell, bool in_depth, nb_way *out);

typedef struct {
    bool differ;
    bool found; /* the difference came again when each operation was observed */
    nb_way ways[2];
    int64_t token;  /* of the text: the first whose logits differ; if found, that of `place` */
    nb_place place; /* if found */
    bool in_logits; /* every operation gave the same: it is the head */
} nb_difference;

/* "layer 3, down, token 17", in a buffer of the caller's. */
typedef struct {
    char text[160];
} nb_place_text;
nb_place_text nb_difference_place(const nb_difference *d);

typedef struct {
    uint64_t hash; /* XOR over the tokens (docs/numerics.md) */
    int64_t n_ways[NB_VERIFY_MAX_ISAS];
    nb_difference difference; /* of the first way that differs; then no other was run */
} nb_verify_result;

/* job->n_tokens is that of plan->isas[0]. `on_way` is called after each way; false stops with
 * NB_INTERRUPTED. May be NULL. A difference is a result, not a failure. */
nb_status nb_verify_cell(const nb_verify_plan *plan, const nb_way_job *job, int64_t cell,
                         bool in_depth, bool (*on_way)(void *context), void *context,
                         nb_verify_result *out, nb_err *err);

/* The same way on two models that should hold the same weights. NB_DATA when their shapes differ.
 * hash[m] is that of job m. Both texts are the same. */
nb_status nb_verify_pair(const nb_way *way, const nb_way_job jobs[2], uint64_t hash[2],
                         nb_difference *out, nb_err *err);

#endif
