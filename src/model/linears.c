/* See linears.h. */
#include "model/linears.h"

#include <assert.h>
#include <stdatomic.h>

/* Linears with equal layouts of their activations share a packing: a group. */
typedef struct {
    nb_work *work;
    const nb_linears *l;
    int64_t n_rows;
    int n_groups;
    nb_xpacked packed[NB_LINEARS_MAX];
    int64_t first_tile[NB_LINEARS_MAX + 1]; /* chunks of the first stage */
    int group_of[NB_LINEARS_MAX];
    int64_t chunk_panels[NB_LINEARS_MAX];
    int64_t first_chunk[NB_LINEARS_MAX + 1]; /* chunks of the second */
    atomic_bool bad;
} run;

int64_t nb_linears_packed_bytes(const nb_config *c, int64_t max_tokens)
{
    const int64_t d_q = c->n_heads * c->head_dim;
    const int64_t q_k_v = NB_LINEARS_MAX * nb_xpack_bytes(c->d_model, max_tokens);
    const int64_t o = nb_xpack_bytes(d_q, max_tokens), down = nb_xpack_bytes(c->d_ff, max_tokens);
    const int64_t most = q_k_v > o ? q_k_v : o;
    return most > down ? most : down;
}

static void observe(const run *r, nb_op op, int64_t row, int64_t column, const float *values,
                    int64_t n)
{
    const nb_work *w = r->work;
    if (w->watcher.see != NULL)
        w->watcher.see(w->watcher.context, r->l->layer, op, w->row_input[row], w->row_pos[row],
                       column, values, n);
}

/* ---- before: norm and packing, by tiles ---- */

static void pack_chunk(void *context, int64_t chunk, int thread)
{
    run *r = context;
    const nb_linears *l = r->l;
    const nb_work *w = r->work;
    int g = 0;
    while (chunk >= r->first_tile[g + 1])
        g++;
    const nb_xpacked *packed = &r->packed[g];
    const int64_t i = chunk - r->first_tile[g], n = packed->layout.n_cols;
    const int64_t row = packed->tile_first[i];
    const float *x = l->x + row * n;
    if (l->gain != NULL) { /* once more for another packing: cheaper than to keep it */
        float *normed = w->normed + thread * w->normed_floats;
        for (int64_t t = 0; t < packed->tiles[i].n_tok; t++) {
            w->kernels->rmsnorm(normed + t * n, x + t * n, l->gain, n, w->model->config.rms_eps);
            if (g == 0)
                observe(r, l->norm_op, row + t, 0, normed + t * n, n);
        }
        x = normed;
    }
    if (packed->layout.round.on) {
        float *rounded = w->normed + thread * w->normed_floats;
        bool finite = true;
        for (int64_t t = 0; t < packed->tiles[i].n_tok; t++)
            finite = nb_round_row(rounded + t * n, x + t * n, n, &packed->layout.round) && finite;
        if (!finite)
            atomic_store_explicit(&r->bad, true, memory_order_relaxed);
        x = rounded;
    }
    if (!nb_xpack_tile(packed, w->kernels, i, x, n))
        atomic_store_explicit(&r->bad, true, memory_order_relaxed);
}

/* ---- the products, and after: by strips ---- */

static void product(const run *r, int j, int64_t begin, int64_t end)
{
    const nb_linears *l = r->l;
    const nb_linear *linear = l->w[j];
    const nb_gemm_job job = {&linear->w, l->y[j], linear->w.n_rows};
    nb_gemm_panels(r->work->kernels, &r->packed[r->group_of[j]], &job, begin, end);
    const int64_t ld = linear->w.n_rows, column = begin * NB_PANEL_ROWS;
    const int64_t stop = end * NB_PANEL_ROWS < ld ? end * NB_PANEL_ROWS : ld, n = stop - column;
    for (int64_t row = 0; row < r->n_rows; row++) {
        float *y = l->y[j] + row * ld + column;
        if (linear->bias != NULL)
            r->work->kernels->add(y, linear->bias + column, n);
        observe(r, l->op[j], row, column, y, n);
        if (l->then == NB_THEN_ADD) {
            float *sum = l->residual + row * ld + column;
            r->work->kernels->add(sum, y, n);
            observe(r, l->then_op, row, column, sum, n);
        }
    }
}

/* Linear *j and its panels [begin, end) of a chunk of the second stage. */
static int64_t strip_of(const run *r, int64_t chunk, int *j, int64_t *end)
{
    *j = 0;
    while (chunk >= r->first_chunk[*j + 1])
        (*j)++;
    const int64_t begin = (chunk - r->first_chunk[*j]) * r->chunk_panels[*j];
    const int64_t last = r->l->w[*j]->w.n_panels;
    *end = begin + r->chunk_panels[*j] < last ? begin + r->chunk_panels[*j] : last;
    return begin;
}

static void product_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    int j;
    int64_t end;
    const int64_t begin = strip_of(r, chunk, &j, &end);
    product(r, j, begin, end);
}

/* The same strip of gate and up, and their SwiGLU while it is in the cache. */
static void swiglu_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    const nb_linears *l = r->l;
    int j; /* always 0: only gate's chunks are handed out */
    int64_t end;
    const int64_t begin = strip_of(r, chunk, &j, &end);
    product(r, 0, begin, end);
    product(r, 1, begin, end);
    const int64_t ld = l->w[0]->w.n_rows, column = begin * NB_PANEL_ROWS;
    const int64_t stop = end * NB_PANEL_ROWS < ld ? end * NB_PANEL_ROWS : ld;
    for (int64_t row = 0; row < r->n_rows; row++) {
        float *gate = l->y[0] + row * ld + column;
        r->work->kernels->swiglu(gate, gate, l->y[1] + row * ld + column, stop - column);
        observe(r, l->then_op, row, column, gate, stop - column);
    }
}

/* With few tokens the products wait for memory, so the first strips may as well come while another
 * thread still packs. */
static void fetch_panels(const nb_panels *w, int64_t begin, int64_t end)
{
    const uint8_t *stop = w->codes + end * w->panel_bytes;
    for (const uint8_t *p = w->codes + begin * w->panel_bytes; p < stop; p += NB_CACHE_LINE)
        __builtin_prefetch(p, 0, 2);
}

static void fetch_chunk(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const run *r = context;
    int j;
    int64_t end;
    const int64_t begin = strip_of(r, chunk, &j, &end);
    fetch_panels(&r->l->w[j]->w, begin, end);
    if (r->l->then == NB_THEN_SWIGLU)
        fetch_panels(&r->l->w[1]->w, begin, end);
}

/* ---- the run ---- */

static void plan_packings(run *r)
{
    const nb_linears *l = r->l;
    nb_xlayout layouts[NB_LINEARS_MAX];
    uint8_t *buffer = r->work->packed;
    for (int j = 0; j < l->n; j++) {
        const nb_linear *linear = l->w[j];
        nb_xlayout layout;
        nb_xlayout_for(&layout, &linear->w, linear->mode, linear->per_token);
        layout.round = linear->round;
        int g = 0;
        while (g < r->n_groups && !nb_xlayout_equal(&layouts[g], &layout))
            g++;
        r->group_of[j] = g;
        if (g < r->n_groups)
            continue;
        layouts[g] = layout;
        nb_xpack_plan(&r->packed[g], &layout, r->work->kernels, r->n_rows, buffer);
        buffer += nb_xpack_bytes(layout.n_cols, r->n_rows);
        r->first_tile[g + 1] = r->first_tile[g] + r->packed[g].n_tiles;
        r->n_groups++;
    }
}

static void plan_products(run *r)
{
    const nb_linears *l = r->l;
    for (int j = 0; j < l->n; j++) {
        const nb_panels *w = &l->w[j]->w;
        r->chunk_panels[j] = nb_gemm_chunk_panels(w, r->n_rows);
        if (l->then == NB_THEN_SWIGLU && r->chunk_panels[j] > 1)
            r->chunk_panels[j] /= 2; /* a chunk is two strips */
        r->first_chunk[j + 1] =
            r->first_chunk[j] + (w->n_panels + r->chunk_panels[j] - 1) / r->chunk_panels[j];
    }
}

bool nb_linears_run(nb_work *w, const nb_linears *l, int64_t n_rows)
{
    run r = {.work = w, .l = l, .n_rows = n_rows};
    plan_packings(&r);
    plan_products(&r);
    const bool pairs = l->then == NB_THEN_SWIGLU;
    assert(!pairs || (l->n == 2 && l->w[0]->w.n_rows == l->w[1]->w.n_rows));
    const nb_stage stages[] = {
        {.n_chunks = r.first_tile[r.n_groups], .task = pack_chunk},
        {.n_chunks = r.first_chunk[pairs ? 1 : l->n],
         .task = pairs ? swiglu_chunk : product_chunk,
         .fetch = fetch_chunk,
         .in_streams = true},
    };
    nb_pool_run_stages(w->pool, stages, 2, &r);
    return !atomic_load(&r.bad);
}
