/* Speed of every kernel, one by one, as a share of its roofline: the limits of this machine,
 * measured in the same run with the same instruction set. Results are compared with the scalar
 * reference's, bit for bit, before they are timed.
 *
 *     bench_kernels [--threads N] [--isa NAME] [--only gemm|attention|small|matmul] [ROWS COLUMNS]
 *
 * By default all instruction sets that the machine has, 1 thread, matrices of 2048 x 2048.
 * --threads counts for the matrix products; the other kernels run on one thread anyway. Times are
 * medians of 7 runs. */
#include "kernels.h"

#include "base/clock.h"
#include "base/rng.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define RUNS        7
#define RUN_SECONDS 0.004

void bench_die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "bench_kernels: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

void *bench_alloc(int64_t count, size_t size)
{
    nb_err err;
    void *p;
    if (nb_alloc(&p, (size_t)count, size, &err) != NB_OK)
        bench_die("%s", err.text);
    return p;
}

float bench_random(void)
{
    static uint64_t counter;
    return (float)(nb_rng_uniform(1, 2, counter++) * 2 - 1);
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double bench_time(call_fn *call, void *context)
{
    double seconds[RUNS];
    int64_t reps = 1;
    for (int r = 0; r < RUNS; r++) {
        for (;;) {
            const double start = nb_clock();
            for (int64_t i = 0; i < reps; i++)
                call(context);
            seconds[r] = nb_clock() - start;
            if (seconds[r] > RUN_SECONDS)
                break;
            reps *= 2;
        }
        seconds[r] /= (double)reps;
    }
    qsort(seconds, RUNS, sizeof *seconds, compare_doubles);
    return seconds[RUNS / 2];
}

/* The level that holds what is used over and over, with its bandwidth. */
static double bandwidth(const nb_limits *l, double footprint, const char **level)
{
    if (l->l2 > 0 && footprint <= (double)(l->l2_bytes * l->n_threads)) {
        *level = "L2";
        return l->l2;
    }
    if (l->l3 > 0 && footprint <= (double)l->l3_bytes) {
        *level = "L3";
        return l->l3;
    }
    *level = "memory";
    return l->read;
}

void bench_line(const bench *b, const nb_limits *l, const char *kernel, const char *what,
                double seconds, const work *w)
{
    const char *bound;
    const double by_bytes = w->bytes / bandwidth(l, w->footprint, &bound);
    const double by_int8 = w->int8_ops / l->int8_ops, by_fma = w->fma_ops / l->fma_ops;
    const double by_ops = by_int8 + by_fma;
    if (by_ops > by_bytes)
        bound = by_int8 > by_fma ? l->int8_unit : l->fma_unit;
    const double ops = w->int8_ops + w->fma_ops;
    printf("%-7s %-10s %-30s %10.2f us ", nb_isa_name(b->k.isa), kernel, what, 1e6 * seconds);
    if (ops > 0)
        printf("%8.1f Gop/s ", 1e-9 * ops / seconds);
    else
        printf("%15s", "");
    printf("%7.1f GB/s  %3.0f %% of %s\n", 1e-9 * w->bytes / seconds,
           100 * (by_ops > by_bytes ? by_ops : by_bytes) / seconds, bound);
    fflush(stdout);
}

static void print_limits(const nb_limits *l)
{
    printf("limits, %d thread%s: %.1f Gop/s %s, %.1f Gop/s %s, read %.1f GB/s, L3 %.1f, L2 %.1f\n",
           l->n_threads, l->n_threads == 1 ? "" : "s", 1e-9 * l->int8_ops, l->int8_unit,
           1e-9 * l->fma_ops, l->fma_unit, 1e-9 * l->read, 1e-9 * l->l3, 1e-9 * l->l2);
}

static void run_isa(bench *b, nb_pool *one, const char *only)
{
    nb_err err;
    if (nb_limits_measure(&b->one, b->k.isa, one, &err) != NB_OK ||
        nb_limits_measure(&b->all, b->k.isa, b->pool, &err) != NB_OK)
        bench_die("%s", err.text);
    print_limits(&b->one);
    if (b->all.n_threads > 1)
        print_limits(&b->all);
    const struct {
        const char *name;
        void (*run)(const bench *b);
    } parts[] = {{"gemm", bench_gemm},
                 {"attention", bench_attention},
                 {"small", bench_small},
                 {"matmul", bench_matmul}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (only == NULL || strcmp(only, parts[i].name) == 0)
            parts[i].run(b);
    }
}

static void usage(void)
{
    bench_die(
        "usage: bench_kernels [--threads N] [--isa NAME] [--only gemm|attention|small|matmul] "
        "[ROWS COLUMNS]");
}

int main(int argc, char **argv)
{
    bench b = {.n_rows = 2048, .n_cols = 2048};
    const char *only = NULL, *isa = NULL;
    int threads = 1, at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (strcmp(argv[at], "--threads") == 0)
            threads = atoi(argv[at + 1]);
        else if (strcmp(argv[at], "--only") == 0)
            only = argv[at + 1];
        else if (strcmp(argv[at], "--isa") == 0)
            isa = argv[at + 1];
        else
            usage();
    }
    if (at + 2 == argc) {
        b.n_rows = atoll(argv[at]);
        b.n_cols = atoll(argv[at + 1]);
    } else if (at != argc) {
        usage();
    }
    if (threads < 1 || threads > NB_POOL_MAX_THREADS || b.n_rows < 1 || b.n_cols < 1 ||
        b.n_rows > 1 << 20 || b.n_cols > 1 << 20)
        usage();
    nb_err err;
    nb_pool *one;
    if (nb_pool_open(&one, 1, &err) != NB_OK || nb_pool_open(&b.pool, threads, &err) != NB_OK)
        bench_die("%s", err.text);
    nb_kernels_init(&b.ref, NB_ISA_SCALAR);
    /* Each mask once: what it adds to the one before must be there. */
    static const char *const names[] = {"avx2", "avx512", "amx", "neon"};
    unsigned seen = 0;
    int n_run = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        unsigned mask;
        if (nb_isa_parse(names[i], &mask, &err) != NB_OK)
            continue;
        nb_kernels_init(&b.k, mask);
        if (b.k.isa == seen || b.k.isa == NB_ISA_SCALAR)
            continue;
        seen = b.k.isa;
        if (isa == NULL || strcmp(isa, names[i]) == 0) {
            run_isa(&b, one, only);
            n_run++;
        }
    }
    nb_pool_close(b.pool);
    nb_pool_close(one);
    if (n_run == 0)
        bench_die("this machine has none of the instruction sets that were asked for");
    return 0;
}
