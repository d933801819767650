/* The driver of methods that need data: walks a model block by block with the calibration text,
 * gathers what the method asked for, and leaves the quantized weights in a working folder, from
 * which nb_rewrite takes them.
 *
 * A block, in turn: its transform, if there is one (statistics of all four points in one sweep);
 * then point by point (q, k, v; o; gate, up; down) statistics, codes, and on with the quantized
 * weights, so that each layer sees what the quantized model will give it (true-sequential, GPTQ,
 * arXiv:2210.17323). Methods that look at magnitudes only take the statistics of the full-precision
 * model, in one sweep.
 *
 * After each block the state is kept. The result depends on neither threads, nor instruction set,
 * nor on how often the walk was killed. */
#ifndef NB_QUANT_WALK_WALK_H
#define NB_QUANT_WALK_WALK_H

#include "quant/pass/streams.h"
#include "quant/plan/plan.h"

/* Which activations the statistics are of. */
typedef enum {
    NB_FLOW_AUTO,     /* quantized where the method uses second moments, else original */
    NB_FLOW_ORIGINAL, /* of the full-precision model */
    NB_FLOW_QUANTIZED /* of the model as it is quantized so far */
} nb_flow;

typedef struct {
    const char *what;   /* "layer 3 of 30" */
    double done, total; /* floating-point operations, about */
} nb_walk_progress_info;
/* False stops with NB_INTERRUPTED; what is done stays. */
typedef bool nb_walk_progress(void *context, const nb_walk_progress_info *info);

typedef struct {
    nb_store *store;
    const nb_plan *plan;
    nb_pool *pool;
    const nb_kernels *kernels;
    const nb_calib_seq *seqs;
    int64_t n_seqs;
    const nb_method *method;  /* of weights whose rule names none (nb_plan_method) */
    const nb_method *tune;    /* a method that tunes whole blocks, on top of those; NULL: none */
    const nb_method *distill; /* options of a tuning of all scales at the end (distill.h); NULL:
                                 none */
    const nb_transform *transform; /* NULL: none */
    const char *transform_options;
    nb_flow flow;
    int64_t memory;         /* bytes that the program may take; 0: no limit */
    nb_observing observing; /* how static scales of activations are chosen */
    bool guided;            /* tokens count in sums by what they do to the predictions (guide.h) */
    bool by_outputs; /* with it, rows make up for each other's errors by what outputs share */
    uint64_t seed;   /* of the guide's labels */
    const nb_workdir *dir;
    const char *key; /* identifies model, data, recipe and version: other states are not resumed */
    nb_walk_progress *progress; /* NULL: none */
    void *context;
} nb_walk_job;

/* What it will take. */
typedef struct {
    int64_t memory, disk;       /* bytes */
    double flops, tuning_flops; /* all; of those, what tuning of blocks takes */
    int64_t tuning_memory;      /* of memory */
    int64_t max_rows;           /* rows of a step, as memory allows */
} nb_walk_plan;

typedef struct {
    bool *made;        /* [plan->n]: the weight is in the working folder, */
    int64_t made_from; /* under its number in the plan and this */
    float *act_scale;  /* [plan->n]: of weights whose static activations had none; else 0 */
    json_t *layers;    /* array, an object a linear: see walk.c */
    json_t *distilled; /* object: what the tuning at the end has done; NULL: there was none */
    int64_t resumed;   /* blocks that were there already */
    const char *anew; /* why what an earlier run has left was of no use: "is damaged"; NULL: it was,
                         or there was nothing */
} nb_walk_result;

/* True if a method of the plan's linear layers, the transform or static activations need a walk.
 * *can_do_without: all of these methods would also choose without data, and there is nothing else.
 */
bool nb_walk_wanted(const nb_plan *plan, const nb_method *method, const nb_transform *transform,
                    bool *can_do_without);

/* NB_LIMIT, with both numbers, when it does not fit into job->memory. */
nb_status nb_walk_estimate(nb_walk_plan *out, const nb_walk_job *job, nb_err *err);
/* Seconds it will take on this machine, from trials of a second or less. */
nb_status nb_walk_seconds(const nb_walk_job *job, const nb_walk_plan *plan, double *seconds,
                          nb_err *err);
nb_status nb_walk(const nb_walk_job *job, nb_walk_result *out, nb_err *err);
void nb_walk_result_free(nb_walk_result *r);

#endif
