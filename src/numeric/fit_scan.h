/* Private to the searches for scales: the sums of nb_fit_scan over a piece of the data, in C and
 * with the vectors that x86 may have. All give the same bits: value i goes to lane i mod 8, and
 * lanes are folded 4, 2, 1. */
#ifndef NB_NUMERIC_FIT_SCAN_H
#define NB_NUMERIC_FIT_SCAN_H

#include "numeric/fit.h"

#define NB_FIT_CHUNK 128
#define NB_FIT_LANES 8

/* Widened once for all maps; padded with what counts nothing. */
typedef struct {
    double x[NB_FIT_CHUNK], p[NB_FIT_CHUNK], px[NB_FIT_CHUNK];
    int n; /* a multiple of NB_FIT_LANES */
} nb_fit_chunk;

/* out[m] += the sums of the chunk under map[m]. */
typedef void nb_fit_chunk_fn(const nb_fit_chunk *k, const nb_fit_map *map, int n_maps, double top,
                             nb_fit_sums *out);
nb_fit_chunk_fn nb_fit_chunk_c;
#if defined(__x86_64__)
nb_fit_chunk_fn nb_fit_chunk_avx2, nb_fit_chunk_avx512;
#endif

/* The i-th of those that this machine can run, the best one first; NULL behind the last. */
nb_fit_chunk_fn *nb_fit_chunk_at(int i);

#endif
