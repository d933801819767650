/* Inside bench_kernels: what all kernels are timed with, and the line that each of them gets. */
#ifndef NB_BENCH_KERNELS_H
#define NB_BENCH_KERNELS_H

#include "kernel/gemm.h"
#include "kernel/limits.h"

#include <stdio.h>

typedef struct {
    nb_kernels k, ref;
    nb_limits all, one; /* of the pool's threads, and of one */
    nb_pool *pool;
    int64_t n_rows, n_cols; /* of the matrices */
} bench;

/* What a call costs at least. */
typedef struct {
    double int8_ops, fma_ops;
    double bytes;     /* read and written */
    double footprint; /* bytes that are in use over and over: what level they come from */
} work;

typedef void call_fn(void *context);

/* Median seconds of a call, warm. */
double bench_time(call_fn *call, void *context);
/* One line: time, rates, and the share of the roofline: the least time that the operations or the
 * bytes take by the limits, whichever is longer, of the time that was measured. */
void bench_line(const bench *b, const nb_limits *limits, const char *kernel, const char *what,
                double seconds, const work *w);

/* Ends the program: a result that differs from the reference's, or no memory. */
void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void *bench_alloc(int64_t count, size_t size);
/* In [-1, 1), the next of one stream. */
float bench_random(void);

void bench_gemm(const bench *b);
void bench_attention(const bench *b);
void bench_small(const bench *b);
void bench_matmul(const bench *b);

#endif
