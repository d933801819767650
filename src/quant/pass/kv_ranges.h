/* Static scales for an FP8 key-value cache: what keys, after RoPE, and values of each layer are
 * when a calibration text runs through a finished model, and one scale for them, or one a head.
 *
 * The model is taken block by block, its own weights in their own formats, so that only one block
 * has to be in memory; the hidden states between two blocks lie in a working folder. The scales
 * depend neither on threads nor on the instruction set, nor on how much memory there is. */
#ifndef NB_QUANT_PASS_KV_RANGES_H
#define NB_QUANT_PASS_KV_RANGES_H

#include "quant/pass/streams.h"

typedef struct {
    nb_store *store;
    const nb_calib_seq *seqs;
    int64_t n_seqs;
    bool by_head; /* a scale for each KV head; else one for all */
    nb_observing observing;
    int64_t memory; /* bytes that the program may take; 0: no limit */
    const nb_kernels *kernels;
    nb_pool *pool;
    const nb_workdir *dir;
    nb_streams_progress *progress; /* NULL: none */
    void *context;
} nb_kv_ranges_job;

typedef struct {
    int64_t memory, disk; /* bytes */
    double flops;
    int64_t max_rows; /* of a step, as memory allows */
} nb_kv_ranges_plan;

/* What it will take; job->store is any model of the same shape, whose weights count as
 * block_bytes. NB_LIMIT, with both numbers, where that is more than job->memory. */
nb_status nb_kv_ranges_estimate(nb_kv_ranges_plan *out, const nb_kv_ranges_job *job,
                                const nb_config *c, int64_t block_bytes, nb_err *err);

/* scales [n_layers][2][n], keys then values, n the number of KV heads or 1: what the observer's
 * range gives for E4M3, within [2^-14, 65280], rounded up to a number that BF16 holds. Such numbers
 * are also F16, so every reader gets the same ones whatever it keeps scales in. */
nb_status nb_kv_ranges_find(const nb_kv_ranges_job *job, const nb_kv_ranges_plan *plan,
                            float *scales, nb_err *err);

/* The rounding alone. */
float nb_kv_scale_round(float scale);

#endif
