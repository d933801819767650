/* What a quantized output has lost, measured before the command ends: the finished file against its
 * original, on calibration text that was held out. */
#ifndef NB_CLI_CHECKING_H
#define NB_CLI_CHECKING_H

#include "cli/runtime.h"
#include "quant/calib/set.h"
#include "quant/write/finite.h"

/* Tokens that are scored in one piece, at most; single blocks are measured on one such piece.
 * Longer ones would cost more memory for caches than the quantizing itself takes. */
#define NB_CHECK_WINDOW 512

typedef struct {
    const char *source, *output;
    const nb_finite *finite; /* what of the source is taken for zeros */
    const nb_calib_set *set;
    int64_t n_sequences; /* held-out sequences, at most; 0: no check */
    int64_t memory;      /* bytes that the program may take; 0: what the machine has */
    bool whole_only;     /* no blocks by themselves */
} nb_check_request;

/* What a check will take. */
typedef struct {
    int64_t memory; /* bytes; 0: there will be none */
    double flops, seconds;
} nb_check_plan;

/* The program and its tables, with room to spare. */
#define NB_CHECK_BASE_BYTES 64e6
/* What a model takes in memory, for its bytes in a file. */
#define NB_CHECK_PACKED 1.02

/* NB_LIMIT when so many bytes are not to be had: `memory` as in a request. */
nb_status nb_check_memory(int64_t needed, int64_t memory, nb_err *err);
/* Operations of all blocks for one token that sees so many. */
double nb_check_blocks_flops(const nb_config *c, double n_seen);
/* How long they will take, with n_logits logits: measured, by trials. */
nb_status nb_check_seconds(double *out, double flops, double n_logits, const nb_runtime *rt,
                           nb_err *err);

/* Before there is an output: of output_bytes, from an opened source. All zero when no check will be
 * made; where it does not fit into memory, `to` is told why. Seconds are measured, by trials, only
 * when `timed`. */
nb_status nb_check_estimate(nb_check_plan *out, const nb_check_request *request, nb_store *source,
                            int64_t output_bytes, const nb_runtime *rt, bool timed, nb_out *to,
                            nb_err *err);

/* The object "evaluation" of nibble-report.json:
 *
 *   n_sequences, n_windows, window, n_tokens    what was scored
 *   compute, kv                                 how the output was computed
 *   perplexity, perplexity_se, base_perplexity, kl_mean, kl_mean_se, kl_median, kl_p99, kl_max,
 *   top1, top1_se                               as nibble eval has them: KL(original || output)
 *   flips                                       1 - top1
 *   noise_floor     kl_mean, definition         of the original against itself, with the cache of
 *                                               keys and values in F16: what no output goes below
 *   layers          an object a block (layer, kl_mean): the original with this block alone taken
 *                   from the output, on layer_tokens tokens
 *   seconds
 *
 * or only left_out, a text that says why there are no numbers: no held-out text, not enough memory,
 * an interruption, logits that are not finite. None of these fails: the output stands already. NULL
 * in *out when no check was asked for. Fails with NB_MEMORY for the report itself only. */
nb_status nb_check_run(json_t **out, const nb_check_request *request, const nb_runtime *rt,
                       nb_out *to, nb_err *err);

#endif
