/* Sums over tokens and what is done to them element by element: see hessian.h. Factors and solves
 * are in triangle.c. */
#include "quant/inputs/hessian.h"

#include <assert.h>
#include <string.h>

/* Far above any layer; keeps the sizes below from wrapping. */
#define MAX_COLUMNS ((int64_t)1 << 24)

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Doubles of the triangle: a band of rows by what is left of the columns, for each band. */
static int64_t n_doubles(int64_t n)
{
    int64_t total = 0;
    for (int64_t at = 0; at < n; at += NB_SYM_BLOCK)
        total += min64(n - at, NB_SYM_BLOCK) * (n - at);
    return total;
}

int64_t nb_sym_bytes(int64_t n)
{
    return n_doubles(n) * (int64_t)sizeof(double) + n * (int64_t)sizeof(int64_t);
}

nb_status nb_sym_init(nb_sym *s, int64_t n, nb_err *err)
{
    *s = (nb_sym){0};
    if (n < 0 || n > MAX_COLUMNS)
        return nb_fail(err, NB_LIMIT, "second moments of %lld columns; at most %lld can be summed",
                       (long long)n, (long long)MAX_COLUMNS);
    nb_sym made = {.n = n};
    nb_status status = NB_ALLOC(&made.row_at, n, err);
    if (status == NB_OK)
        status = NB_ALLOC(&made.a, n_doubles(n), err);
    if (status != NB_OK) {
        nb_sym_free(&made);
        return nb_context(err, "second moments of %lld columns", (long long)n);
    }
    int64_t end = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t band = i / NB_SYM_BLOCK * NB_SYM_BLOCK;
        made.row_at[i] = end - band;
        end += n - band;
    }
    *s = made;
    return NB_OK;
}

void nb_sym_free(nb_sym *s)
{
    nb_free(s->a);
    nb_free(s->row_at);
    nb_free(s->diag);
    *s = (nb_sym){0};
}

void nb_sym_copy(nb_sym *to, const nb_sym *from)
{
    assert(to->n == from->n);
    if (to->n > 0)
        memcpy(to->a, from->a, (size_t)n_doubles(from->n) * sizeof *to->a);
}

void nb_sym_add(nb_sym *to, const nb_sym *from)
{
    assert(to->n == from->n);
    const int64_t n = n_doubles(to->n);
    for (int64_t i = 0; i < n; i++)
        to->a[i] += from->a[i];
}

/* ---- resting ---- */

int64_t nb_sym_rest_rows(int64_t n)
{
    return n_doubles(n);
}

nb_status nb_sym_rest(nb_sym *s, const nb_spill *file, nb_err *err)
{
    double *diag;
    assert(s->a != NULL && file->row_bytes == sizeof *s->a);
    NB_TRY(NB_ALLOC(&diag, s->n, err));
    for (int64_t i = 0; i < s->n; i++)
        diag[i] = nb_sym_row(s, i)[i];
    const nb_status status = nb_spill_write(file, 0, n_doubles(s->n), s->a, err);
    if (status != NB_OK) {
        nb_free(diag);
        return status;
    }
    nb_free(s->a);
    s->a = NULL;
    s->diag = diag;
    s->file = file;
    return NB_OK;
}

nb_status nb_sym_wake(nb_sym *to, const nb_sym *from, nb_err *err)
{
    assert(nb_sym_rests(from));
    NB_TRY(nb_sym_init(to, from->n, err));
    const nb_status status = nb_spill_read(from->file, 0, n_doubles(from->n), to->a, err);
    if (status != NB_OK)
        nb_sym_free(to);
    return status;
}

nb_status nb_sym_band(const nb_sym *s, int64_t band, double *room, const double **rows, nb_err *err)
{
    const int64_t first = band * NB_SYM_BLOCK, width = s->n - first;
    const int64_t at = s->row_at[first] + first;
    *rows = nb_sym_rests(s) ? room : s->a + at;
    if (!nb_sym_rests(s))
        return NB_OK;
    return nb_spill_read(s->file, at, min64(width, NB_SYM_BLOCK) * width, room, err);
}

void nb_algebra_free(nb_algebra *la)
{
    nb_buf_free(&la->scratch);
}

/* ---- sums ---- */

nb_status nb_sym_add_rows(nb_algebra *la, nb_sym *s, const float *x, int64_t ld, int64_t n_rows,
                          nb_err *err)
{
    const int64_t bytes = nb_outer_scratch_bytes(s->n, s->n, nb_pool_n_threads(la->pool));
    NB_TRY(nb_buf_reserve(&la->scratch, (size_t)bytes, err));
    const nb_outer_job job = {.c = s->a,
                              .row_at = s->row_at,
                              .m = s->n,
                              .n = s->n,
                              .n_rows = n_rows,
                              .a = x,
                              .b = x,
                              .lda = ld,
                              .ldb = ld,
                              .upper = true};
    nb_outer_add(la->kernels, la->pool, &job, la->scratch.data);
    return NB_OK;
}

nb_status nb_cross_add_rows(nb_algebra *la, double *c, int64_t n, const float *a, const float *b,
                            int64_t ld, int64_t n_rows, nb_err *err)
{
    /* The starts of the rows come behind what the product needs, which is whole cache lines. */
    const int64_t bytes = nb_outer_scratch_bytes(n, n, nb_pool_n_threads(la->pool));
    NB_TRY(nb_buf_reserve(&la->scratch, (size_t)bytes + (size_t)n * sizeof(int64_t), err));
    int64_t *row_at = (int64_t *)(void *)(la->scratch.data + bytes);
    for (int64_t i = 0; i < n; i++)
        row_at[i] = i * n;
    const nb_outer_job job = {.c = c,
                              .row_at = row_at,
                              .m = n,
                              .n = n,
                              .n_rows = n_rows,
                              .a = a,
                              .b = b,
                              .lda = ld,
                              .ldb = ld};
    nb_outer_add(la->kernels, la->pool, &job, la->scratch.data);
    return NB_OK;
}

/* ---- damping ---- */

/* A column without a second moment has no others either, except where its squares are too small
 * for binary32 and its products with other columns are not: these have to go, or the matrix would
 * not be positive. */
static void disconnect(nb_sym *s, int64_t j)
{
    for (int64_t i = 0; i < j; i++)
        nb_sym_row(s, i)[j] = 0;
    double *row = nb_sym_row(s, j);
    for (int64_t k = j + 1; k < s->n; k++)
        row[k] = 0;
    row[j] = 1;
}

void nb_sym_damp(nb_sym *s, double shrink, double damp)
{
    double mean = 0;
    for (int64_t i = 0; i < s->n; i++)
        mean += nb_sym_row(s, i)[i];
    mean /= (double)s->n;
    for (int64_t i = 0; i < s->n; i++) {
        double *row = nb_sym_row(s, i);
        if (row[i] == 0) {
            disconnect(s, i);
            continue;
        }
        if (shrink != 0)
            for (int64_t j = i + 1; j < s->n; j++)
                row[j] *= 1 - shrink;
        row[i] += damp * mean;
    }
}
