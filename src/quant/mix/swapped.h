/* A model in memory with some of its linear layers swapped for quantized ones, and how far that
 * takes its predictions from the original's: the true KL divergence over some tokens.
 *
 * What the original has before each block is kept on disk, and so are its logits: a swap costs the
 * blocks from there on and the head. Everything but what schemes say of activations runs in mode f.
 * The numbers depend neither on threads nor on the instruction set. */
#ifndef NB_QUANT_MIX_SWAPPED_H
#define NB_QUANT_MIX_SWAPPED_H

#include "model/forward.h"
#include "quant/calib/set.h"
#include "quant/encode/quantizer.h"
#include "quant/weight/workdir.h"

/* Told of all work, in floating-point operations. False stops with NB_INTERRUPTED. */
typedef bool nb_swapped_progress(void *context, double flops);

typedef struct {
    nb_store *store;
    nb_pool *pool;
    const nb_kernels *kernels;
    const nb_calib_seq *seqs; /* borrowed, as all else */
    int64_t n_seqs;
    const nb_workdir *dir;
    int64_t memory;                /* bytes that the program may take; 0: no limit */
    nb_swapped_progress *progress; /* NULL: none */
    void *context;
} nb_swapped_job;

typedef struct nb_swapped nb_swapped;

/* Bytes in memory and on disk, and operations of one token in one block and in the head. */
typedef struct {
    int64_t memory, disk;
    double block_flops, head_flops;
} nb_swapped_plan;
nb_status nb_swapped_estimate(nb_swapped_plan *out, const nb_swapped_job *job, nb_err *err);

/* Loads the model and runs the original. NB_LIMIT when it does not fit into job->memory: the whole
 * model has to. */
nb_status nb_swapped_open(nb_swapped **out, const nb_swapped_job *job, nb_err *err);
void nb_swapped_close(nb_swapped *s); /* NULL is fine */

/* Chooses codes for linear `id` of a block, by a method that needs no more than magnitudes (weights
 * count by the mean square of their inputs), and puts them in its place. `to` is the weight as
 * planned. Errors leave what was there. */
nb_status nb_swapped_set(nb_swapped *s, int64_t layer, nb_linear_id id, const nb_weight *to,
                         const nb_method *method, nb_err *err);
/* The original again, of one linear or of all. */
void nb_swapped_restore(nb_swapped *s, int64_t layer, nb_linear_id id);
void nb_swapped_restore_all(nb_swapped *s);

/* Mean over the tokens of KL(original || as swapped), in nats; nothing is swapped in blocks before
 * `layer`. NB_DATA when it is not finite. */
nb_status nb_swapped_kl(nb_swapped *s, int64_t layer, double *kl, nb_err *err);

#endif
