/* Speed of the matrix products, kernel by kernel, beside this machine's own peak measured in the
 * same run. Each kernel's result is compared with the scalar reference's before it is timed.
 *
 *     bench_kernels [threads] [rows] [columns]        default: 1 thread, 1536 x 576
 *
 * Columns: format of the weights, columns under a scale, compute mode, tokens; Gop/s (a multiply
 * and an add are two) as the median of 9 runs; share of the best rate this run has seen for the
 * kind of unit the kernel uses. */
#define _GNU_SOURCE
#include "base/rng.h"
#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS 9

static void die(const nb_err *err)
{
    fprintf(stderr, "bench_kernels: %s\n", err->text);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t counter;

static float random_f32(void)
{
    return (float)(nb_rng_uniform(1, 2, counter++) * 2 - 1);
}

/* A random matrix in the format, made by its own encoder. */
static void random_mat(nb_mat *m, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                       int64_t group)
{
    nb_err err;
    *m = (nb_mat){.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    if (fmt->affine) {
        m->group_size = group > 0 ? group : n_cols;
        m->scale_type = NB_BF16;
        const size_t n = (size_t)(n_rows * nb_mat_n_groups(m));
        if (nb_alloc(&m->scales, n, 2, &err) != NB_OK)
            die(&err);
    }
    if (nb_format_row_bytes(fmt, n_cols, &m->row_bytes, &err) != NB_OK ||
        nb_alloc(&m->codes, (size_t)n_rows, (size_t)m->row_bytes, &err) != NB_OK)
        die(&err);
    float *row = malloc((size_t)n_cols * sizeof *row);
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t k = 0; k < n_cols; k++)
            row[k] = random_f32();
        fmt->encode_row(m, r, row);
    }
    free(row);
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median seconds of packing the activations and multiplying. */
static double time_product(const nb_kernels *k, nb_pool *pool, const nb_panels *w,
                           const nb_xlayout *layout, const float *x, int64_t n_tok, float *y,
                           void *buffer)
{
    double seconds[RUNS];
    const nb_gemm_job job = {w, y, w->n_rows};
    int reps = 1;
    for (int r = 0; r < RUNS; r++) {
        double t;
        for (;;) {
            const double start = now();
            for (int i = 0; i < reps; i++) {
                nb_xpacked packed;
                nb_xpack(&packed, layout, k, pool, x, layout->n_cols, n_tok, buffer);
                nb_gemm(k, pool, &packed, &job, 1);
            }
            t = now() - start;
            if (t > 0.004)
                break;
            reps *= 2;
        }
        seconds[r] = t / reps;
    }
    qsort(seconds, RUNS, sizeof *seconds, compare_doubles);
    return seconds[RUNS / 2];
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    const int64_t n_rows = argc > 2 ? atoll(argv[2]) : 1536,
                  n_cols = argc > 3 ? atoll(argv[3]) : 576;
    static const struct {
        const nb_format *fmt;
        int64_t group;
    } formats[] = {{&nb_format_bf16, 0},  {&nb_format_q4_0, 32}, {&nb_format_q8_0, 32},
                   {&nb_format_int4, 32}, {&nb_format_int4, 64}, {&nb_format_int8, 0}};
    static const int64_t tokens[] = {1, 4, 8, 16, 512};
    static const unsigned masks[] = {NB_ISA_AVX2, NB_ISA_AVX2 | NB_ISA_AVX512};
    nb_err err;
    nb_pool *pool;
    if (nb_pool_open(&pool, threads, &err) != NB_OK)
        die(&err);
    nb_kernels ref;
    nb_kernels_init(&ref, 0);
    double best[3] = {0};
    printf("%lld x %lld, %d threads\n%-7s %-6s %6s %-4s %7s %9s %8s\n", (long long)n_rows,
           (long long)n_cols, threads, "isa", "format", "scale", "mode", "tokens", "Gop/s",
           "of best");
    for (size_t m = 0; m < sizeof masks / sizeof *masks; m++) {
        nb_kernels k;
        nb_kernels_init(&k, masks[m]);
        if (k.isa != masks[m])
            continue;
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
            nb_mat mat;
            nb_panels w;
            random_mat(&mat, formats[f].fmt, n_rows, n_cols, formats[f].group);
            nb_panels_plan(&w, &mat);
            if (nb_panels_alloc(&w, NULL, &err) != NB_OK || nb_panels_pack(&w, &mat, pool, &err) != NB_OK)
                die(&err);
            for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
                nb_xlayout layout;
                nb_xlayout_for(&layout, &w, (nb_compute)mode, false);
                if ((int)layout.mode != mode)
                    continue;
                for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
                    const int64_t n = tokens[t];
                    float *x = malloc((size_t)(n * n_cols) * sizeof *x);
                    float *y = malloc((size_t)(n * n_rows) * sizeof *y);
                    float *want = malloc((size_t)n_rows * sizeof *want);
                    void *buffer;
                    if (nb_alloc(&buffer, 1, (size_t)nb_xpack_bytes(n_cols, n), &err) != NB_OK)
                        die(&err);
                    for (int64_t i = 0; i < n * n_cols; i++)
                        x[i] = random_f32();
                    const double s = time_product(&k, pool, &w, &layout, x, n, y, buffer);
                    /* The last token against the reference, bit for bit. */
                    nb_xpacked packed;
                    nb_xpack(&packed, &layout, &ref, pool, x + (n - 1) * n_cols, n_cols, 1, buffer);
                    nb_gemm(&ref, pool, &packed, &(nb_gemm_job){&w, want, n_rows}, 1);
                    if (memcmp(want, y + (n - 1) * n_rows, (size_t)n_rows * sizeof *y) != 0) {
                        fprintf(stderr, "bench_kernels: %s differs from the reference\n",
                                formats[f].fmt->name);
                        return 1;
                    }
                    const double rate = 2e-9 * (double)(n_rows * n_cols * n) / s;
                    best[mode] = rate > best[mode] ? rate : best[mode];
                    printf("%-7s %-6s %6lld %-4s %7lld %9.1f %7.0f%%\n", nb_isa_name(k.isa),
                           formats[f].fmt->name,
                           (long long)(formats[f].group > 0 || f == 0 ? formats[f].group : n_cols),
                           nb_compute_name(layout.mode), (long long)n, rate,
                           100 * rate / best[mode]);
                    nb_free(buffer);
                    free(x);
                    free(y);
                    free(want);
                }
            }
            nb_panels_free(&w);
            nb_free(mat.codes);
            nb_free(mat.scales);
        }
    }
    nb_pool_close(pool);
    return 0;
}
