/* See gemm.h. */
#include "kernel/gemm.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

const char *nb_compute_name(nb_compute c)
{
    return c == NB_COMPUTE_F ? "f" : c == NB_COMPUTE_I8 ? "i8" : "i16";
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- layouts ---- */

static bool nests(int64_t a, int64_t b, int64_t n_cols)
{
    return a >= n_cols || b >= n_cols || a % b == 0 || b % a == 0;
}

void nb_xlayout_for(nb_xlayout *layout, const nb_panels *w, nb_compute wanted, bool per_token)
{
    nb_xlayout l = {.mode = wanted, .n_cols = w->n_cols, .k_pad = w->k_pad};
    if (!nb_panels_has_ints(w))
        l.mode = NB_COMPUTE_F;
    if (l.mode != NB_COMPUTE_F) {
        const int64_t wseg = w->seg_len;
        l.x_seg_len = wseg < 32 ? 32 : wseg > 128 ? 128 : wseg;
        if (l.mode == NB_COMPUTE_I8 && per_token)
            l.x_seg_len = w->n_cols;
        if (!nests(wseg, l.x_seg_len, w->n_cols))
            l.mode = NB_COMPUTE_F;
        l.seg_len = min64(min64(wseg, l.x_seg_len), NB_SEG_MAX);
        if (l.seg_len < w->n_cols && l.seg_len % 8 != 0)
            l.mode = NB_COMPUTE_F;
    }
    if (l.mode == NB_COMPUTE_F)
        l.x_seg_len = l.seg_len = 0;
    else if (w->zeros == NULL)
        l.zero_const = w->zero_const;
    *layout = l;
}

bool nb_xlayout_equal(const nb_xlayout *a, const nb_xlayout *b)
{
    return a->mode == b->mode && a->n_cols == b->n_cols && a->x_seg_len == b->x_seg_len &&
           a->seg_len == b->seg_len && a->zero_const == b->zero_const &&
           a->round.on == b->round.on && a->round.group == b->round.group &&
           a->round.scale == b->round.scale && a->round.integer == b->round.integer;
}

/* ---- packing of activations ---- */

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

/* Enough for f (4 bytes a column) and for i16 (2 planes, a scale per 32 columns, and two sums per
 * 8), with each tile's staging; each array rounded up to a cache line. */
int64_t nb_xpack_bytes(int64_t n_cols, int64_t n_tok)
{
    const int64_t k_pad = (n_cols + 63) / 64 * 64, n_scales = ceil_div(n_cols, 32);
    const int64_t per_token = 4 * k_pad + 8 * (k_pad / 8) + 4 * n_scales;
    const int64_t per_tile =
        (int64_t)(sizeof(nb_xtile) + sizeof(int64_t)) + nb_pack_tile_staging(n_cols) + 6 * 64;
    /* Packings that follow each other in one buffer all begin on a cache line. */
    return (int64_t)align64(
        (size_t)(n_tok * per_token + ceil_div(n_tok, NB_TILE_MAX) * per_tile + 4 * 64));
}

/* Below this many tokens the tiles of a unit for rows would be mostly empty. */
#define ROWS_MIN_TOKENS 16

/* Takes n bytes of the buffer. */
static void *take(uint8_t **p, int64_t n)
{
    void *at = *p;
    *p += align64((size_t)n);
    return at;
}

void nb_xpack_plan(nb_xpacked *out, const nb_xlayout *layout, const nb_kernels *k, int64_t n_tok,
                   void *buffer)
{
    const nb_xlayout *l = layout;
    const bool integer = l->mode != NB_COMPUTE_F;
    const bool rows = integer && k->gemm_rows != NULL && n_tok >= ROWS_MIN_TOKENS &&
                      (l->seg_len <= NB_ROWS_BLOCK || l->seg_len >= l->n_cols);
    uint8_t *p = buffer;
    *out = (nb_xpacked){.layout = *l, .n_tok = n_tok};
    out->n_tiles = ceil_div(n_tok, rows ? NB_ROWS_MAX : NB_TILE_MAX);
    out->tiles = take(&p, out->n_tiles * (int64_t)sizeof *out->tiles);
    out->tile_first = take(&p, out->n_tiles * (int64_t)sizeof *out->tile_first);
    out->staging_bytes = nb_pack_tile_staging(l->n_cols);
    out->staging = take(&p, out->n_tiles * out->staging_bytes);
    int64_t first = 0;
    for (int64_t i = 0; i < out->n_tiles; i++) {
        /* Tiles of nearly equal width: 16 tokens are 8 + 8, not 12 + 4. */
        const int64_t n = (n_tok - first + out->n_tiles - i - 1) / (out->n_tiles - i);
        out->tile_first[i] = first;
        nb_xtile tile = {.n_tok = (int)n,
                         .rows = rows,
                         .n_cols = l->n_cols,
                         .k_pad = l->k_pad,
                         .x_seg_len = l->x_seg_len,
                         .seg_len = l->seg_len,
                         .zero_const = l->zero_const,
                         .given = l->round.integer ? l->round.scale : 0};
        if (!integer) {
            tile.f = take(&p, l->n_cols * n * (int64_t)sizeof(float));
        } else {
            tile.row_stride = (l->k_pad + 63) / 64 * 64;
            const int64_t plane = (rows ? tile.row_stride : l->k_pad) * n;
            const int64_t sums = ceil_div(l->n_cols, l->seg_len) * n * (int64_t)sizeof(int32_t);
            tile.hi = take(&p, plane);
            if (l->mode == NB_COMPUTE_I16)
                tile.lo = take(&p, plane);
            tile.scale = take(&p, ceil_div(l->n_cols, l->x_seg_len) * n * (int64_t)sizeof(float));
            tile.xsum = take(&p, sums);
            if (l->zero_const != 0)
                tile.start = take(&p, sums);
        }
        out->tiles[i] = tile;
        first += n;
    }
}

bool nb_xpack_tile(const nb_xpacked *p, const nb_kernels *k, int64_t i, const float *x, int64_t ld)
{
    return k->pack_tile(&p->tiles[i], x, ld, p->staging + i * p->staging_bytes);
}

typedef struct {
    const nb_xpacked *out;
    const nb_kernels *k;
    const float *x;
    int64_t ld;
    atomic_bool bad;
} xpack_job;

static void xpack_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    xpack_job *job = context;
    const float *x = job->x + job->out->tile_first[chunk] * job->ld;
    if (!nb_xpack_tile(job->out, job->k, chunk, x, job->ld))
        atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

bool nb_xpack(nb_xpacked *out, const nb_xlayout *layout, const nb_kernels *k, nb_pool *pool,
              const float *x, int64_t ld, int64_t n_tok, void *buffer)
{
    nb_xpack_plan(out, layout, k, n_tok, buffer);
    xpack_job job = {.out = out, .k = k, .x = x, .ld = ld};
    nb_pool_run(pool, out->n_tiles, xpack_task, &job);
    return !atomic_load(&job.bad);
}

/* ---- products ---- */

/* One token streams weights from memory: a chunk of 16 KiB takes a microsecond. With more
 * tokens the same bytes take longer, and two panels are enough to use a tile of activations from
 * the first-level cache more than once. */
int64_t nb_gemm_chunk_panels(const nb_panels *w, int64_t n_tok)
{
    const int64_t bytes = 16384 / (1 + n_tok / 8), n = bytes / w->panel_bytes;
    /* Float tiles of few tokens take four panels at once, to have enough chains under way. */
    const int64_t least = w->n_segs == 0 && n_tok <= 6 ? 4 : 2;
    return n < least ? least : n;
}

void nb_gemm_panels(const nb_kernels *k, const nb_xpacked *x, const nb_gemm_job *job, int64_t begin,
                    int64_t end)
{
    assert(job->w->n_cols == x->layout.n_cols);
    _Alignas(64) float scratch[NB_GEMM_SCRATCH];
    if (x->layout.mode == NB_COMPUTE_F)
        k->gemm_f(job->y, job->ld, job->w, begin, end, x->tiles, x->tile_first, x->n_tiles,
                  scratch);
    else if (x->tiles[0].rows)
        k->gemm_rows(job->y, job->ld, job->w, begin, end, x->tiles, x->tile_first, x->n_tiles,
                     scratch);
    else
        for (int64_t i = 0; i < x->n_tiles; i++)
            k->gemm_i(job->y + x->tile_first[i] * job->ld, job->ld, job->w, begin, end,
                      &x->tiles[i]);
}

typedef struct {
    const nb_kernels *k;
    const nb_xpacked *x;
    const nb_gemm_job *jobs;
    int64_t per_chunk[NB_GEMM_MAX_JOBS];
    int64_t first_chunk[NB_GEMM_MAX_JOBS + 1];
} gemm_run;

static void gemm_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const gemm_run *run = context;
    int j = 0;
    while (chunk >= run->first_chunk[j + 1])
        j++;
    const int64_t begin = (chunk - run->first_chunk[j]) * run->per_chunk[j];
    nb_gemm_panels(run->k, run->x, &run->jobs[j], begin,
                   min64(begin + run->per_chunk[j], run->jobs[j].w->n_panels));
}

void nb_gemm(const nb_kernels *k, nb_pool *pool, const nb_xpacked *x, const nb_gemm_job *jobs,
             int n_jobs)
{
    assert(n_jobs <= NB_GEMM_MAX_JOBS);
    gemm_run run = {.k = k, .x = x, .jobs = jobs};
    for (int j = 0; j < n_jobs; j++) {
        run.per_chunk[j] = nb_gemm_chunk_panels(jobs[j].w, x->n_tok);
        run.first_chunk[j + 1] =
            run.first_chunk[j] + ceil_div(jobs[j].w->n_panels, run.per_chunk[j]);
    }
    nb_pool_run(pool, run.first_chunk[n_jobs], gemm_task, &run);
}
