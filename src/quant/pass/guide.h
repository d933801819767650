/* The guide: what each token's error at each point of each block does to the model's predictions.
 *
 * To second order, KL(model || model with outputs z + e in place of z) is half the mean of (g .
 * e)^2 over labels drawn from the model itself, g being the gradient of their cross-entropy at z:
 * the Fisher information. Without what pairs of outputs share, that is half the sum of g_o^2 e_o^2,
 * and with one number for all outputs of the linears that read at a point,
 *
 *   s_t = mean over outputs o of g_t,o^2,   KL ~ 1/2 sum over tokens of s_t |e_t|^2,
 *
 * so that H = sum of s_t x_t x_t^T tells what a change of weights does to the loss, where the plain
 * sum of x_t x_t^T tells what it does to the layer (GuidedQuant, arXiv:2505.07004, with one group
 * of outputs a point, and drawn labels in place of those of the text).
 *
 * What pairs of outputs share is in G = sum of g g^T: with independence of x and g, the loss of a
 * change E of the weights is tr(G E H E^T) (K-FAC; for rounding YAQA, arXiv:2505.22988). It is
 * gathered on request: gptq.h takes it.
 *
 * The gradients are those of the full-precision model, in mode f, summed over the tokens of each
 * sequence. The label at a position is drawn by Philox(seed, 0x6775696465, token), token counting
 * through the whole calibration set. One forward pass, one backward pass with its forward pass once
 * more, a few sequences at a time, block by block: memory holds one block or the head, the disk the
 * inputs of all blocks for those sequences. */
#ifndef NB_QUANT_PASS_GUIDE_H
#define NB_QUANT_PASS_GUIDE_H

#include "quant/calib/set.h"
#include "quant/inputs/hessian.h"
#include "quant/transform/transform.h"
#include "quant/weight/workdir.h"

/* Told of every piece of work, in floating-point operations. False stops with NB_INTERRUPTED. */
typedef bool nb_guide_progress(void *context, double flops);

typedef struct {
    nb_store *store;
    nb_pool *pool;
    const nb_kernels *kernels;
    const nb_calib_seq *seqs;
    int64_t n_seqs;
    const nb_workdir *dir;
    uint64_t seed;
    bool outputs;                /* also the second moments of gradients: see below */
    nb_guide_progress *progress; /* NULL: none */
    /* Called when n_done sequences are in the file, to keep guide->n_done and guide->hash. */
    nb_status (*keep)(void *context, nb_err *err);
    void *context; /* of both */
} nb_guide_job;

typedef struct {
    nb_config config;
    nb_spill file; /* row layer * n_tokens + token: s at the four points, binary32 */
    int64_t n_layers, n_tokens;
    int64_t n_done; /* sequences, from the first on, that the file holds */
    uint64_t hash;  /* of their rows */
    /* With outputs: after an even and an odd number of batches, row `layer`: the triangles of all
     * linears. */
    nb_spill moments[2];
    int current; /* of these two */
    uint64_t moments_hash;
    double *mean; /* [n_layers][NB_N_POINTS]: of s over all tokens, once it is made */
} nb_guide;

/* `{0}` with the file closed. */
#define NB_GUIDE_NONE                                                                              \
    ((nb_guide){.file = NB_SPILL_CLOSED, .moments = {NB_SPILL_CLOSED, NB_SPILL_CLOSED}})

typedef struct {
    int64_t memory, disk; /* bytes */
    double flops;
} nb_guide_plan;

/* What making it takes: about 3.5 forward passes. `memory` is INT64_MAX where it is no number. */
void nb_guide_estimate(nb_guide_plan *out, const nb_config *c, const nb_calib_seq *seqs,
                       int64_t n_seqs, bool outputs, int n_threads);

/* Makes the guide, or what is missing of it: *g is NB_GUIDE_NONE, or has the n_done and hash that
 * an earlier call with the same job has kept. If the file is not what they say, all is made anew.
 * The result depends on neither threads, nor instruction set, nor interruptions. NB_DATA: a
 * gradient is not finite. Close after failures, too; g->n_done and g->hash are then what was kept.
 */
nb_status nb_guide_make(nb_guide *g, const nb_guide_job *job, nb_err *err);
void nb_guide_close(nb_guide *g); /* the file stays */

/* G = sum of g g^T over all tokens, of the outputs of a linear, into *g_g, which is made. */
nb_status nb_guide_outputs(const nb_guide *g, int64_t layer, nb_linear_id which, int64_t n_rows,
                           nb_sym *g_g, nb_err *err);

/* out [n]: s of tokens [token, token + n) at a point, over its mean. Where all s are zero, 1. */
nb_status nb_guide_weights(const nb_guide *g, int64_t layer, nb_point point, int64_t token,
                           int64_t n, float *out, nb_err *err);
static inline double nb_guide_mean(const nb_guide *g, int64_t layer, nb_point point)
{
    return g->mean[layer * NB_N_POINTS + point];
}

#endif
