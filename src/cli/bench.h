/* Inside nibble bench: what is measured, how, and how it is printed. */
#ifndef NB_CLI_BENCH_H
#define NB_CLI_BENCH_H

#include "cli/runtime.h"
#include "kernel/limits.h"

#define NB_BENCH_STEP      512 /* tokens of a prompt that are fed at once, and the most sequences */
#define NB_BENCH_LISTS     16  /* numbers in a list of depths or batches */
#define NB_BENCH_CHECK_CTX 48  /* positions that the check needs */

typedef struct {
    int64_t of[NB_BENCH_LISTS];
    int n;
} nb_bench_list;

/* What the options ask for. */
typedef struct {
    int64_t prompt, gen;             /* tokens of prefill, and of decode alone */
    int64_t batch_prompt, batch_gen; /* tokens of each sequence of a batch, before and in the run */
    int64_t repeat;                  /* measurements of a figure */
    double patience;                 /* seconds after which a figure gets no further one */
    nb_bench_list depths, batches;
    int64_t n_ctx; /* the longest context of all that */
} nb_bench_wants;

/* Tokens per second. */
typedef struct {
    double median, low, high;
} nb_speed;

/* What was measured at one depth. A batch whose caches do not fit in memory has the median 0. */
typedef struct {
    int64_t depth;
    nb_speed prefill, decode;
    nb_speed batch[NB_BENCH_LISTS];
} nb_bench_row;

typedef struct {
    nb_bench_wants wants;
    nb_runtime rt;
    nb_opened o;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq *seqs;
    int n_seqs;
    int32_t *tokens; /* [n_ctx + NB_BENCH_STEP], random */
    nb_step_input *inputs;
    int32_t *next;          /* [n_seqs]: tokens of a step of decode */
    float *hidden, *logits; /* of n_seqs rows */
    double *times;          /* [repeat] */
    nb_bench_row *rows;     /* [depths.n] */
    int64_t kv_room;        /* bytes that caches may take */
    int64_t peak_rss;       /* when all was timed */
    nb_limits limits;
    const char *label, *scheme; /* scheme: of a shape, else NULL */
} nb_bench;

/* ---- bench_run.c ---- */

/* Bytes of cache that n sequences of n_positions take. */
int64_t nb_bench_kv_bytes(const nb_bench *b, int64_t n, int64_t n_positions);
/* Buffers and caches for what is wanted. Depths at which a batch does not fit are left to
 * nb_bench_fits, which says so. */
nb_status nb_bench_prepare(nb_bench *b, nb_kv_format kv, nb_err *err);
bool nb_bench_fits(const nb_bench *b, int64_t n_seqs, int64_t depth);
void nb_bench_free(nb_bench *b);

/* The contract in small: tokens at once, one by one, and among other sequences give the same
 * logits, and all of them are finite. */
nb_status nb_bench_check(nb_bench *b, nb_err *err);
/* Fills b->rows. */
nb_status nb_bench_measure(nb_bench *b, nb_out *out, nb_err *err);

/* ---- bench_print.c ---- */

nb_status nb_bench_print(const nb_bench *b, const char *kv, nb_out *out, nb_err *err);
/* Limits alone. */
nb_status nb_bench_print_limits(const nb_limits *l, const nb_runtime *rt, nb_out *out, nb_err *err);

#endif
