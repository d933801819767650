/* AutoRound: the rounding of all linear layers of one block, learned together so that the block
 * gives what it gave in full precision. SignRound, arXiv:2309.05516; scales that begin with a
 * search, as in SignRoundV2, arXiv:2512.04746.
 *
 * The loss is the squared error of the block's output over sequences of the calibration set, on the
 * inputs that the quantized model so far gives it. A step takes some sequences, runs the block with
 * the rounded weights forward and backward, and moves every rounding (rounding.h) against the sign
 * of its gradient, by a rate that falls linearly to 0. Of the last step, the step that was best on
 * its own sequences (its loss as a share of theirs under rounding to nearest), and rounding to
 * nearest, the one that is best on the judges is stored: all sequences, or 128 evenly apart.
 *
 * The result depends on the data, the seed and the options alone. */
#ifndef NB_QUANT_ENCODE_AUTOROUND_H
#define NB_QUANT_ENCODE_AUTOROUND_H

#include "model/backward.h"
#include "quant/encode/quantizer.h"

/* One block for nb_quantizer.tune_block. */
typedef struct nb_block_job {
    const nb_method *method;
    const nb_config *config;
    const nb_rope_table *rope;
    const nb_kernels *kernels;
    nb_pool *pool;
    nb_block_weights weights;  /* in full precision, finite */
    nb_mat *out[NB_N_LINEARS]; /* planned: format, groups and room; filled by the call. NULL:
                                      the layer is used as it is in weights */
    /* `out` holds codes and scales of another method already (GPTQ's, say), to start from in place
     * of searched scales and rounding to nearest. From there the usual rates do harm: in one block
     * of a 135M model at 4 bits, 20 steps from GPTQ's codes, at 0.4 of the error of rounding to
     * nearest, ended above it with 1 / iters, and at 0.85 of it (0.95 on held-out text) with
     * lr = 0.2 / iters and range-lr = 0. */
    bool resume;
    int64_t n_seq;
    const int64_t *n_tokens; /* [n_seq], each at least 1: positions count from 0 in each */
    /* The first n tokens of a sequence: x [n][d_model], inputs of the block in the quantized model
     * so far; y [n][d_model], outputs of the block in the original model. */
    nb_status (*fetch)(void *context, int64_t seq, int64_t n, float *x, float *y, nb_err *err);
    /* After a step, with its loss as a share of rounding to nearest's. False: stop, and the call
     * returns NB_INTERRUPTED. NULL: none. */
    bool (*progress)(void *context, int64_t step, int64_t n_steps, double loss);
    void *context;
    uint64_t seed;
    int64_t memory; /* bytes that the call may take; 0: no limit */
} nb_block_job;

typedef struct nb_block_result {
    /* Mean squared errors of the block's output over the judges: of the start (rounding to
     * nearest, or what `resume` gave), and what was learned. Those of the first are what is stored
     * if best_step is 0. */
    double loss_before, loss_after;
    int64_t best_step, n_steps;
} nb_block_result;

typedef struct {
    int64_t iters, batch, len; /* steps; sequences a step; tokens of a sequence at most */
    double rate, range_rate;   /* of V and of the factors; 0 for the latter: scales stay */
    bool binary32;             /* all products of steps, not in bfloat16 (backward.h) */
} nb_autoround_options;

/* "iters=200,batch=8,len=512,lr=0.005,range-lr=0.005,amp=0"; rates are 1 / iters where not given,
 * amp=0 is binary32. range-lr is that of grids of up to 4 levels (rounding.h). With `resumes`, from
 * the codes of another method, a fifth of that rate, and scales stay: faster steps lose what was
 * there. */
nb_status nb_autoround_options_parse(nb_autoround_options *out, const nb_method *method,
                                     bool resumes, nb_err *err);

/* Bytes that tuning a block takes with batches of at least one sequence at a time (least) and whole
 * ones (most), without weights and outputs. */
void nb_autoround_bytes(const nb_config *c, const nb_autoround_options *o, int n_threads,
                        int64_t *least, int64_t *most);

/* Forward passes in binary32 over a sequence, of o->len tokens at most, that tuning a block with
 * n_seq of them takes; one backward counts as two, and those of steps as half where `isa` has the
 * dot products of bfloat16. */
double nb_autoround_passes(const nb_autoround_options *o, int64_t n_seq, unsigned isa);

nb_status nb_autoround(const nb_block_job *job, const nb_autoround_options *o,
                       nb_block_result *result, nb_err *err);

#endif
