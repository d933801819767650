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
    if (w->n_segs == 0)
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
    *layout = l;
}

bool nb_xlayout_equal(const nb_xlayout *a, const nb_xlayout *b)
{
    return a->mode == b->mode && a->n_cols == b->n_cols && a->x_seg_len == b->x_seg_len &&
           a->seg_len == b->seg_len;
}

/* ---- packing of activations ---- */

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

/* Enough for f (4 bytes a column) and for i16 (2 planes, a scale per 32 columns and a sum per 8),
 * with each tile's staging row; each array rounded up to a cache line. */
int64_t nb_xpack_bytes(int64_t n_cols, int64_t n_tok)
{
    const int64_t k_pad = (n_cols + 7) / 8 * 8, n_scales = ceil_div(n_cols, 32);
    const int64_t per_token = 4 * k_pad + 4 * (k_pad / 8) + 4 * n_scales;
    const int64_t per_tile =
        (int64_t)(sizeof(nb_xtile) + sizeof(int64_t)) + 2 * k_pad + 4 * n_scales + 6 * 64;
    return n_tok * per_token + ceil_div(n_tok, NB_TILE_MAX) * per_tile + 4 * 64;
}

typedef struct {
    nb_xpacked *out;
    const nb_kernels *k;
    const float *x;
    int64_t ld;
    atomic_bool bad;
} xpack_job;

static void pack_tile_f(const nb_xpacked *out, const nb_xtile *tile, const float *x, int64_t ld)
{
    float *f = (float *)(uintptr_t)tile->f;
    const int64_t n = out->layout.n_cols, n_tok = tile->n_tok;
    if (n_tok == 1) {
        memcpy(f, x, (size_t)n * sizeof *f);
        return;
    }
    for (int64_t t = 0; t < n_tok; t++) {
        for (int64_t k = 0; k < n; k++)
            f[k * n_tok + t] = x[t * ld + k];
    }
}

/* Spreads a row of codes over the tile's panel. */
static void spread(const nb_xlayout *l, const int8_t *row, int8_t *plane, int64_t n_tok, int64_t t)
{
    for (int64_t k = 0; k < l->k_pad; k += 4)
        memcpy(plane + (k / 4 * n_tok + t) * 4, row + k, 4);
}

static int32_t sum_codes(const int8_t *code, int64_t n)
{
    int32_t sum = 0;
    for (int64_t k = 0; k < n; k++)
        sum += code[k];
    return sum;
}

static bool pack_tile_i(const nb_xpacked *out, const nb_xtile *tile, const nb_kernels *k,
                        const float *x, int64_t ld)
{
    const nb_xlayout *l = &out->layout;
    const bool wide = l->mode == NB_COMPUTE_I16;
    const int64_t n_tok = tile->n_tok;
    int8_t *hi = (int8_t *)(uintptr_t)tile->hi, *lo = (int8_t *)(uintptr_t)tile->lo;
    float *scale = (float *)(uintptr_t)tile->scale;
    int32_t *xsum = (int32_t *)(uintptr_t)tile->xsum;
    const int64_t n_x_segs = ceil_div(l->n_cols, l->x_seg_len);
    bool finite = true;
    for (int64_t t = 0; t < n_tok; t++) {
        /* The staging rows live behind the sums: codes of this token, then its scales. */
        int8_t *row_hi = (int8_t *)(xsum + ceil_div(l->n_cols, l->seg_len) * n_tok);
        row_hi = (int8_t *)align64((size_t)(uintptr_t)row_hi);
        int8_t *row_lo = row_hi + l->k_pad;
        float *row_scale = (float *)(void *)(row_lo + l->k_pad);
        memset(row_hi + l->n_cols, 0, (size_t)(l->k_pad - l->n_cols));
        memset(row_lo + l->n_cols, 0, (size_t)(l->k_pad - l->n_cols));
        finite = k->quantize_row(x + t * ld, l->n_cols, l->x_seg_len, row_hi, wide ? row_lo : NULL,
                                 row_scale) &&
                 finite;
        for (int64_t s = 0; s < n_x_segs; s++)
            scale[s * n_tok + t] = row_scale[s];
        spread(l, row_hi, hi, n_tok, t);
        if (wide)
            spread(l, row_lo, lo, n_tok, t);
        for (int64_t s = 0, begin = 0; begin < l->n_cols; s++, begin += l->seg_len) {
            const int64_t n = min64(l->seg_len, l->n_cols - begin);
            const int32_t high = sum_codes(row_hi + begin, n);
            xsum[s * n_tok + t] = wide ? 256 * high + sum_codes(row_lo + begin, n) : high;
        }
    }
    return finite;
}

static void xpack_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    xpack_job *job = context;
    const nb_xtile *tile = &job->out->tiles[chunk];
    const float *x = job->x + job->out->tile_first[chunk] * job->ld;
    if (job->out->layout.mode == NB_COMPUTE_F)
        pack_tile_f(job->out, tile, x, job->ld);
    else if (!pack_tile_i(job->out, tile, job->k, x, job->ld))
        atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

bool nb_xpack(nb_xpacked *out, const nb_xlayout *layout, const nb_kernels *k, nb_pool *pool,
              const float *x, int64_t ld, int64_t n_tok, void *buffer)
{
    const nb_xlayout *l = layout;
    uint8_t *p = buffer;
    *out = (nb_xpacked){.layout = *l, .n_tok = n_tok, .n_tiles = ceil_div(n_tok, NB_TILE_MAX)};
    out->tiles = (void *)p;
    p += align64((size_t)out->n_tiles * sizeof *out->tiles);
    out->tile_first = (void *)p;
    p += align64((size_t)out->n_tiles * sizeof *out->tile_first);
    int64_t first = 0;
    for (int64_t i = 0; i < out->n_tiles; i++) {
        /* Tiles of nearly equal width: 16 tokens are 8 + 8, not 12 + 4. */
        const int64_t n = (n_tok - first + out->n_tiles - i - 1) / (out->n_tiles - i);
        out->tile_first[i] = first;
        nb_xtile tile = {.n_tok = (int)n, .x_seg_len = l->x_seg_len, .seg_len = l->seg_len};
        if (l->mode == NB_COMPUTE_F) {
            tile.f = (void *)p;
            p += align64((size_t)(l->n_cols * n) * sizeof(float));
        } else {
            const int planes = l->mode == NB_COMPUTE_I16 ? 2 : 1;
            tile.hi = (void *)p;
            tile.lo = planes == 2 ? (const int8_t *)p + l->k_pad * n : NULL;
            p += l->k_pad * n * planes;
            tile.scale = (void *)p;
            p += (size_t)(ceil_div(l->n_cols, l->x_seg_len) * n) * sizeof(float);
            tile.xsum = (void *)p;
            p += (size_t)(ceil_div(l->n_cols, l->seg_len) * n) * sizeof(int32_t);
            p = (uint8_t *)align64((size_t)(uintptr_t)p) + 2 * l->k_pad +
                (size_t)ceil_div(l->n_cols, l->x_seg_len) * sizeof(float);
            p = (uint8_t *)align64((size_t)(uintptr_t)p);
        }
        out->tiles[i] = tile;
        first += n;
    }
    xpack_job job = {.out = out, .k = k, .x = x, .ld = ld};
    nb_pool_run(pool, out->n_tiles, xpack_task, &job);
    return !atomic_load(&job.bad);
}

/* ---- products ---- */

typedef struct {
    const nb_kernels *k;
    const nb_xpacked *x;
    const nb_gemm_job *jobs;
    int n_jobs;
    int64_t panels_per_chunk[NB_GEMM_MAX_JOBS];
    int64_t first_chunk[NB_GEMM_MAX_JOBS + 1];
} gemm_run;

static void gemm_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const gemm_run *run = context;
    int j = 0;
    while (chunk >= run->first_chunk[j + 1])
        j++;
    const nb_gemm_job *job = &run->jobs[j];
    const int64_t begin = (chunk - run->first_chunk[j]) * run->panels_per_chunk[j];
    const int64_t end = min64(begin + run->panels_per_chunk[j], job->w->n_panels);
    const nb_xpacked *x = run->x;
    if (x->layout.mode == NB_COMPUTE_F) {
        _Alignas(64) float scratch[NB_GEMM_SCRATCH];
        run->k->gemm_f(job->y, job->ld, job->w, begin, end, x->tiles, x->tile_first, x->n_tiles,
                       scratch);
        return;
    }
    for (int64_t i = 0; i < x->n_tiles; i++)
        run->k->gemm_i(job->y + x->tile_first[i] * job->ld, job->ld, job->w, begin, end,
                       &x->tiles[i]);
}

/* A chunk is about this many bytes of codes: small enough to stay in L2 while all token tiles pass
 * over it and to share the work evenly, large enough to make the hand-over cheap. */
#define CHUNK_BYTES 32768

void nb_gemm(const nb_kernels *k, nb_pool *pool, const nb_xpacked *x, const nb_gemm_job *jobs,
             int n_jobs)
{
    assert(n_jobs <= NB_GEMM_MAX_JOBS);
    gemm_run run = {.k = k, .x = x, .jobs = jobs, .n_jobs = n_jobs};
    for (int j = 0; j < n_jobs; j++) {
        const nb_panels *w = jobs[j].w;
        assert(w->n_cols == x->layout.n_cols);
        int64_t per_chunk = CHUNK_BYTES / w->panel_bytes;
        if (per_chunk < 1)
            per_chunk = 1;
        run.panels_per_chunk[j] = per_chunk;
        run.first_chunk[j + 1] = run.first_chunk[j] + ceil_div(w->n_panels, per_chunk);
    }
    nb_pool_run(pool, run.first_chunk[n_jobs], gemm_task, &run);
}
