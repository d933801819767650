/* See finite.h. */
#include "quant/write/finite.h"

#include "quant/weight/roles.h"

#include <math.h>

#define ROWS_PER_CHUNK 16

/* Of a weight as it is stored, read at once. */
#define STRIP_BYTES ((int64_t)32 << 20)

/* What is not finite in some rows: how many, and the first of them. */
typedef struct {
    int64_t n, row, col;
    float value;
} found;

typedef struct {
    const nb_mat *mat;
    float *room;  /* [n_threads][n_cols] */
    found *found; /* [chunks of ROWS_PER_CHUNK] */
} looking;

static void look_at_row(found *f, int64_t row, const float *x, int64_t n)
{
    int64_t bad = 0;
    for (int64_t c = 0; c < n; c++)
        bad += !isfinite(x[c]);
    if (bad > 0 && f->n == 0) {
        int64_t c = 0;
        while (isfinite(x[c]))
            c++;
        *f = (found){.row = row, .col = c, .value = x[c]};
    }
    f->n += bad;
}

static void look_at_chunk(void *context, int64_t chunk, int thread)
{
    const looking *l = context;
    const int64_t n = l->mat->n_cols, begin = chunk * ROWS_PER_CHUNK;
    float *x = l->room + thread * n;
    for (int64_t r = begin; r < begin + ROWS_PER_CHUNK && r < l->mat->n_rows; r++) {
        l->mat->fmt->decode_row(l->mat, r, x);
        look_at_row(&l->found[chunk], r, x, n);
    }
}

/* Adds what the matrix, the rows of a weight from `first` on, holds. */
static nb_status look_at_mat(found *sum, const nb_mat *mat, int64_t first, nb_pool *pool,
                             nb_err *err)
{
    const int64_t n_chunks = (mat->n_rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK;
    looking l = {.mat = mat};
    nb_status s = NB_ALLOC(&l.room, nb_pool_n_threads(pool) * mat->n_cols, err);
    if (s == NB_OK)
        s = NB_ALLOC(&l.found, n_chunks, err);
    if (s == NB_OK)
        nb_pool_run(pool, n_chunks, look_at_chunk, &l);
    for (int64_t i = 0; s == NB_OK && i < n_chunks; i++) {
        found *f = &l.found[i];
        f->row += first;
        if (sum->n == 0 && f->n > 0)
            *sum = *f;
        else
            sum->n += f->n;
    }
    nb_free(l.room);
    nb_free(l.found);
    return s;
}

static nb_status look(found *out, nb_store *store, const nb_weight *w, nb_loaded *loaded,
                      nb_pool *pool, nb_err *err)
{
    *out = (found){0};
    if (!nb_store_reads_rows(store, w)) {
        NB_TRY(nb_store_read(store, w, loaded, err));
        return look_at_mat(out, &loaded->mat, 0, pool, err);
    }
    const int64_t fit = STRIP_BYTES / (w->bytes / w->n_rows + 1), strip = fit > 0 ? fit : 1;
    for (int64_t row = 0; row < w->n_rows; row += strip) {
        const int64_t left = w->n_rows - row, n = left < strip ? left : strip;
        NB_TRY(nb_store_read_rows(store, w, row, n, loaded, err));
        NB_TRY(look_at_mat(out, &loaded->mat, row, pool, err));
    }
    return NB_OK;
}

static nb_status settle(nb_finite *f, nb_nonfinite what, nb_loaded *loaded, nb_pool *pool,
                        nb_err *err)
{
    const int64_t n_weights = nb_store_n_weights(f->store);
    NB_TRY(NB_ALLOC(&f->n_bad, n_weights > 0 ? n_weights : 1, err));
    for (int64_t i = 0; i < n_weights; i++) {
        found bad;
        const nb_weight *w = nb_store_weight(f->store, i);
        if (nb_role_of(w) == NB_ROLE_OTHER)
            continue;
        NB_TRY(look(&bad, f->store, w, loaded, pool, err));
        if (bad.n == 0)
            continue;
        if (what == NB_NONFINITE_REFUSE)
            return nb_fail(err, NB_DATA,
                           "%s: tensor '%.200s' holds %g at [%lld, %lld]; --nonfinite=zero takes "
                           "it for 0",
                           nb_store_path(f->store), w->name, (double)bad.value, (long long)bad.row,
                           (long long)bad.col);
        f->n_bad[i] = bad.n;
        NB_TRY(nb_store_zero_nonfinite(f->store, w, true, err));
    }
    return NB_OK;
}

nb_status nb_finite_settle(nb_finite *f, nb_store *store, nb_nonfinite what, nb_pool *pool,
                           nb_err *err)
{
    nb_loaded loaded = {0};
    *f = (nb_finite){.store = store};
    const nb_status s = settle(f, what, &loaded, pool, err);
    nb_loaded_free(&loaded);
    return s;
}

int64_t nb_finite_n_zeroed(const nb_finite *f, const nb_weight *weight)
{
    return f->n_bad == NULL ? 0 : f->n_bad[weight - nb_store_weight(f->store, 0)];
}

nb_status nb_finite_repeat(const nb_finite *f, nb_store *store, nb_err *err)
{
    for (int64_t i = 0; f->n_bad != NULL && i < nb_store_n_weights(f->store); i++) {
        const nb_weight *w = nb_store_find(store, nb_store_weight(f->store, i)->name);
        if (f->n_bad[i] > 0 && w != NULL)
            NB_TRY(nb_store_zero_nonfinite(store, w, true, err));
    }
    return NB_OK;
}

void nb_finite_lift(const nb_finite *f)
{
    nb_err ignored = {0};
    for (int64_t i = 0; f->n_bad != NULL && i < nb_store_n_weights(f->store); i++)
        (void)nb_store_zero_nonfinite(f->store, nb_store_weight(f->store, i), false, &ignored);
}

void nb_finite_free(nb_finite *f)
{
    nb_free(f->n_bad);
    *f = (nb_finite){0};
}
