/* Matrix products: every format and group that has a kernel of its own, every mode, from one token
 * to a prompt. The time is that of the product; packing the activations is in kernels_small.c. */
#include "kernels.h"

#include "numeric/minifloat.h"

#include <stdlib.h>
#include <string.h>

/* A random matrix in the format, made by its own encoder. */
static void random_mat(nb_mat *m, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                       int64_t group, bool asymmetric)
{
    nb_err err;
    *m = (nb_mat){.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    if (fmt->affine) {
        m->group_size = group > 0 ? group : n_cols;
        m->scale_type = NB_BF16;
        m->scales = bench_alloc(n_rows * nb_mat_n_groups(m), 2);
        if (asymmetric)
            m->zeros = bench_alloc(n_rows * nb_mat_n_groups(m), 1);
    }
    if (nb_format_row_bytes(fmt, n_cols, &m->row_bytes, &err) != NB_OK)
        bench_die("%s", err.text);
    m->codes = bench_alloc(n_rows, (size_t)m->row_bytes);
    float *row = bench_alloc(n_cols, sizeof *row);
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t k = 0; k < n_cols; k++)
            row[k] = bench_random();
        fmt->encode_row(m, r, row);
    }
    nb_free(row);
}

typedef struct {
    const bench *b;
    nb_xpacked x;
    nb_gemm_job job;
} product;

static void run_product(void *context)
{
    const product *p = context;
    nb_gemm(&p->b->k, p->b->pool, &p->x, &p->job, 1);
}

/* The last token's row of the product, by the reference. */
static void check_last(const bench *b, const nb_panels *w, const nb_xlayout *layout, const float *x,
                       const float *got, const char *name)
{
    float *want = bench_alloc(w->n_rows, sizeof *want);
    void *buffer = bench_alloc(nb_xpack_bytes(w->n_cols, 1), 1);
    nb_xpacked packed;
    nb_xpack(&packed, layout, &b->ref, b->pool, x, w->n_cols, 1, buffer);
    nb_gemm(&b->ref, b->pool, &packed, &(nb_gemm_job){w, want, w->n_rows}, 1);
    if (memcmp(want, got, (size_t)w->n_rows * sizeof *want) != 0)
        bench_die("gemm, %s, mode %s: not what the reference gives", name,
                  nb_compute_name(layout->mode));
    nb_free(buffer);
    nb_free(want);
}

static void time_tokens(const bench *b, const nb_panels *w, const nb_xlayout *layout, int64_t n,
                        const char *name)
{
    float *x = bench_alloc(n * w->n_cols, sizeof *x), *y = bench_alloc(n * w->n_rows, sizeof *y);
    void *buffer = bench_alloc(nb_xpack_bytes(w->n_cols, n), 1);
    for (int64_t i = 0; i < n * w->n_cols; i++)
        x[i] = bench_random();
    product p = {.b = b, .job = {w, y, w->n_rows}};
    nb_xpack(&p.x, layout, &b->k, b->pool, x, w->n_cols, n, buffer);
    run_product(&p);
    check_last(b, w, layout, x + (n - 1) * w->n_cols, y + (n - 1) * w->n_rows, name);
    const double seconds = bench_time(run_product, &p);
    const double ops = 2 * (double)w->n_rows * (double)w->n_cols * (double)n;
    const double weights = (double)nb_panels_bytes(w);
    work cost = {.bytes = weights, .footprint = weights};
    if (layout->mode == NB_COMPUTE_F)
        cost.fma_ops = ops;
    else
        cost.int8_ops = layout->mode == NB_COMPUTE_I16 ? 2 * ops : ops;
    char what[64];
    snprintf(what, sizeof what, "%s, mode %s, %lld token%s", name, nb_compute_name(layout->mode),
             (long long)n, n == 1 ? "" : "s");
    bench_line(b, &b->all, "gemm", what, seconds, &cost);
    nb_free(buffer);
    nb_free(x);
    nb_free(y);
}

void bench_gemm(const bench *b)
{
    static const struct {
        const char *name;
        const nb_format *fmt;
        int64_t group;
        bool asymmetric, per_token;
    } kinds[] = {
        {"f32", &nb_format_f32, 0, false, false},
        {"bf16", &nb_format_bf16, 0, false, false},
        {"q4_0", &nb_format_q4_0, 0, false, false},
        {"q4_1", &nb_format_q4_1, 0, false, false},
        {"q8_0", &nb_format_q8_0, 0, false, false},
        {"int4:g32", &nb_format_int4, 32, false, false},
        {"int4:g64", &nb_format_int4, 64, false, false},
        {"int4:g128", &nb_format_int4, 128, false, false},
        {"int4:g128,asym", &nb_format_int4, 128, true, false},
        {"int8:g128", &nb_format_int8, 128, false, false},
        {"int8:channel", &nb_format_int8, 0, false, true},
    };
    static const int64_t tokens[] = {1, 2, 4, 8, 12, 16, 32, 64, 128, 512};
    for (size_t f = 0; f < sizeof kinds / sizeof *kinds; f++) {
        const bool whole = kinds[f].group == 0 || b->n_cols % kinds[f].group == 0;
        if (!whole || b->n_cols % kinds[f].fmt->block_len != 0) {
            printf("# %s: rows of %lld columns are no whole groups\n", kinds[f].name,
                   (long long)b->n_cols);
            continue;
        }
        nb_err err;
        nb_mat mat;
        nb_panels w;
        random_mat(&mat, kinds[f].fmt, b->n_rows, b->n_cols, kinds[f].group, kinds[f].asymmetric);
        nb_panels_plan(&w, &mat);
        if (nb_panels_alloc(&w, NULL, &err) != NB_OK ||
            nb_panels_pack(&w, &mat, b->pool, &err) != NB_OK)
            bench_die("%s", err.text);
        for (int mode = NB_COMPUTE_F; mode <= NB_COMPUTE_I16; mode++) {
            nb_xlayout layout;
            nb_xlayout_for(&layout, &w, (nb_compute)mode, kinds[f].per_token);
            for (size_t t = 0; (int)layout.mode == mode && t < sizeof tokens / sizeof *tokens; t++)
                time_tokens(b, &w, &layout, tokens[t], kinds[f].name);
        }
        nb_panels_free(&w);
        nb_free(mat.codes);
        nb_free(mat.scales);
        nb_free(mat.zeros);
    }
}
