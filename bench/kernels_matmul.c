/* General matrix products in all orientations, strips of one, sums over tokens, and the linear
 * algebra of encoders in binary64 (whose peak is half of that of binary32, which the share is of:
 * 50 % is all there is). */
#include "kernels.h"

#include "quant/inputs/hessian.h"

#include <string.h>

typedef struct {
    const bench *b;
    nb_pool *pool;
    nb_matmul_job job;
    float *packed;
    void *scratch;
    nb_algebra la;
    nb_sym s, r;
    const float *x;
    double *v;
    double *loss;
    int64_t n_rows;
} product;

static void run_matmul(void *context)
{
    const product *p = context;
    nb_matmul(&p->b->k, p->pool, &p->job, p->scratch);
}

static void run_strip(void *context)
{
    const product *p = context;
    nb_matmul_rows(&p->b->k, &p->job, p->packed, p->scratch);
}

enum { A_BY_COLUMNS = 1, B_BY_COLUMNS = 2, STRIP = 4, PAIRS = 8 };

static float *random_elements(int64_t n, bool pairs)
{
    float *x = bench_alloc(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = bench_random();
        if (pairs)
            nb_bf16_put(x + i, x[i], bench_random());
    }
    return x;
}

static void matmul_line(const bench *b, int64_t m, int64_t n, int64_t columns, int form)
{
    product p = {.b = b, .pool = b->pool};
    const bool strip = form & STRIP, pairs = form & PAIRS;
    const int64_t depth = pairs ? columns / 2 : columns;
    float *a = random_elements(m * depth, pairs), *w = random_elements(depth * n, pairs);
    p.job = (nb_matmul_job){.ldc = n, .m = m, .n = n, .depth = depth, .pairs = pairs};
    p.job.c = bench_alloc(m * n, sizeof(float));
    p.job.a = form & A_BY_COLUMNS ? (nb_view){a, 1, m} : (nb_view){a, depth, 1};
    p.job.b = form & B_BY_COLUMNS ? (nb_view){w, 1, depth} : (nb_view){w, n, 1};
    p.job.add = strip;
    p.packed = bench_alloc(nb_matmul_packed_floats(n, depth), sizeof(float));
    nb_matmul_pack(p.packed, &p.job.b, n, depth, 0, n);
    p.scratch = bench_alloc(NB_MATMUL_ROWS_SCRATCH +
                                nb_matmul_scratch_bytes(m, n, depth, nb_pool_n_threads(b->pool)),
                            1);
    char what[80];
    snprintf(what, sizeof what, "%lld x %lld x %lld, %s%s%s", (long long)m, (long long)columns,
             (long long)n, form & A_BY_COLUMNS ? "aT " : "a ", form & B_BY_COLUMNS ? "bT" : "b",
             pairs ? ", bf16" : "");
    const double bytes = 4.0 * (double)(m * depth + depth * n + m * n);
    const work work = {
        .fma_ops = 2.0 * (double)(m * n * columns), .bytes = bytes, .footprint = bytes};
    bench_line(b, strip ? &b->one : &b->all, strip ? "strip" : "matmul", what,
               bench_time(strip ? run_strip : run_matmul, &p), &work);
    nb_free(a);
    nb_free(w);
    nb_free(p.job.c);
    nb_free(p.packed);
    nb_free(p.scratch);
}

static void check_status(nb_status s, const nb_err *err)
{
    if (s != NB_OK)
        bench_die("%s", err->text);
}

static void run_sums(void *context)
{
    product *p = context;
    nb_err err;
    check_status(nb_sym_add_rows(&p->la, &p->s, p->x, p->s.n, p->n_rows, &err), &err);
}

static void run_factor(void *context)
{
    product *p = context;
    nb_err err;
    bool positive = false;
    nb_sym_copy(&p->r, &p->s);
    check_status(nb_sym_factor(&p->la, &p->r, &positive, &err), &err);
    if (!positive)
        bench_die("the second moments are not positive");
}

static void run_invert(void *context)
{
    product *p = context;
    nb_err err;
    check_status(nb_sym_invert_factor(&p->la, &p->r, &err), &err);
}

static void run_solve(void *context)
{
    product *p = context;
    nb_err err;
    check_status(nb_sym_solve_rows(&p->la, &p->r, p->v, p->n_rows, &err), &err);
}

static void run_loss(void *context)
{
    product *p = context;
    nb_err err;
    check_status(nb_sym_loss_rows(&p->la, &p->s, p->x, p->n_rows, p->loss, &err), &err);
}

static void algebra_lines(const bench *b, int64_t n)
{
    nb_err err;
    product p = {.b = b, .n_rows = 2048, .la = {.kernels = &b->k, .pool = b->pool}};
    float *x = bench_alloc(p.n_rows * n, sizeof *x);
    for (int64_t i = 0; i < p.n_rows * n; i++)
        x[i] = bench_random();
    p.x = x;
    p.v = bench_alloc(p.n_rows * n, sizeof *p.v);
    p.loss = bench_alloc(p.n_rows, sizeof *p.loss);
    check_status(nb_sym_init(&p.s, n, &err), &err);
    check_status(nb_sym_init(&p.r, n, &err), &err);
    const double cube = (double)n * (double)n * (double)n, rows = (double)p.n_rows;
    const double square = (double)n * (double)n;
    const struct {
        const char *name;
        call_fn *call;
        double ops, bytes;
    } lines[] = {
        {"sums", run_sums, rows * square, 8 * square},
        {"factor", run_factor, cube / 3, 4 * square},
        {"solve", run_solve, 2 * rows * square, 8 * square},
        {"invert", run_invert, cube / 3, 4 * square},
        {"loss", run_loss, rows * square, 4 * square},
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char what[80];
        snprintf(what, sizeof what, "%lld columns, %lld rows", (long long)n, (long long)p.n_rows);
        const work work = {
            .fma_ops = lines[i].ops, .bytes = lines[i].bytes, .footprint = lines[i].bytes};
        bench_line(b, &b->all, lines[i].name, what, bench_time(lines[i].call, &p), &work);
        if (lines[i].call == run_sums)
            nb_sym_damp(&p.s, 0, 0.01);
        if (lines[i].call == run_solve)
            run_factor(&p);
    }
    nb_free(x);
    nb_free(p.v);
    nb_free(p.loss);
    nb_sym_free(&p.s);
    nb_sym_free(&p.r);
    nb_algebra_free(&p.la);
}

void bench_matmul(const bench *b)
{
    for (int form = 0; form < 4; form++)
        matmul_line(b, 512, 4096, 1536, form);
    for (int form = 0; form < 4; form++)
        matmul_line(b, 4096, 1536, 576, form);
    matmul_line(b, 4096, 1536, 576, PAIRS); /* the backward pass of a block */
    matmul_line(b, 1536, 576, 4096, A_BY_COLUMNS | PAIRS);
    matmul_line(b, 1536, 576, 4096, A_BY_COLUMNS);
    matmul_line(b, 32, 4096, 128, STRIP);
    matmul_line(b, 256, 4096, 128, STRIP);
    algebra_lines(b, 576);
    algebra_lines(b, 1536);
}
