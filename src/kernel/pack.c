/* Packing of weights into panels; see gemm.h and the drawing in kernel.h. */
#include "kernel/gemm.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

void nb_panels_plan(nb_panels *out, const nb_mat *m)
{
    nb_panels p = {.n_rows = m->n_rows,
                   .n_cols = m->n_cols,
                   .k_pad = round_up(m->n_cols, 8),
                   .n_panels = (m->n_rows + NB_PANEL_ROWS - 1) / NB_PANEL_ROWS};
    if (m->fmt->int_form == NULL) {
        p.kind = m->fmt == &nb_format_bf16  ? NB_PANEL_BF16
                 : m->fmt == &nb_format_f16 ? NB_PANEL_F16
                                            : NB_PANEL_F32;
        p.panel_bytes = p.n_cols * NB_PANEL_ROWS * (p.kind == NB_PANEL_F32 ? 4 : 2);
    } else {
        nb_int_form form;
        m->fmt->int_form(m, &form);
        const bool u4 = form.code_hi - form.code_lo <= 15;
        p.kind = form.table != NULL ? NB_PANEL_T4 : u4 ? NB_PANEL_U4 : NB_PANEL_U8;
        p.panel_bytes = p.k_pad * NB_PANEL_ROWS / (u4 ? 2 : 1);
        p.seg_len = form.segment_len;
        p.n_segs = (p.n_cols + p.seg_len - 1) / p.seg_len;
        p.scale_type = form.scale_type;
        p.zero_const = u4 && form.table == NULL ? -form.code_lo : 128;
        for (int i = 0; form.table != NULL && i < 16; i++)
            p.table[i] = (uint8_t)(form.table[i] + 128);
        /* Placeholders that say which arrays the pack will fill; nb_panels_alloc replaces them. */
        static int16_t has_zeros;
        static uint8_t has_mins;
        p.zeros = form.has_zero ? &has_zeros : NULL;
        p.mins = form.has_min ? &has_mins : NULL;
    }
    *out = p;
}

static int64_t n_params(const nb_panels *p)
{
    return p->n_panels * p->n_segs * NB_PANEL_ROWS;
}

int64_t nb_panels_bytes(const nb_panels *p)
{
    const int64_t scale = (int64_t)nb_float_bytes(p->scale_type);
    return p->n_panels * p->panel_bytes +
           n_params(p) * (scale + (p->zeros != NULL ? 2 : 0) + (p->mins != NULL ? scale : 0));
}

static nb_status allocate(nb_slab *slab, void **out, int64_t count, size_t size, nb_err *err)
{
    return slab != NULL ? nb_slab_alloc(slab, out, (size_t)count, size, err)
                        : nb_alloc(out, (size_t)count, size, err);
}

nb_status nb_panels_alloc(nb_panels *p, nb_slab *slab, nb_err *err)
{
    const bool zeros = p->zeros != NULL, mins = p->mins != NULL;
    const size_t scale = nb_float_bytes(p->scale_type);
    p->codes = NULL;
    p->scales = NULL;
    p->zeros = NULL;
    p->mins = NULL;
    p->borrowed = slab != NULL;
    nb_status s = allocate(slab, (void **)&p->codes, p->n_panels, (size_t)p->panel_bytes, err);
    if (s == NB_OK && p->n_segs > 0)
        s = allocate(slab, &p->scales, n_params(p), scale, err);
    if (s == NB_OK && zeros)
        s = allocate(slab, (void **)&p->zeros, n_params(p), sizeof *p->zeros, err);
    if (s == NB_OK && mins)
        s = allocate(slab, &p->mins, n_params(p), scale, err);
    if (s != NB_OK)
        nb_panels_free(p);
    return s;
}

void nb_panels_free(nb_panels *p)
{
    if (!p->borrowed) {
        nb_free(p->codes);
        nb_free(p->scales);
        nb_free(p->zeros);
        nb_free(p->mins);
    }
    *p = (nb_panels){0};
}

/* ---- filling ---- */

typedef struct {
    nb_panels *p;
    const nb_mat *m;
    uint8_t *scratch; /* per thread */
    size_t scratch_bytes;
} pack_job;

/* A format that has neither codes nor plain numbers is decoded to f32: slow, but it runs. */
static bool needs_decoding(const nb_mat *m)
{
    return m->fmt->int_form == NULL && m->fmt->block_len > 1;
}

static void pack_plain(const nb_panels *p, const nb_mat *m, int64_t panel, uint8_t *scratch)
{
    const int64_t first = panel * NB_PANEL_ROWS;
    const int rows = (int)(m->n_rows - first < NB_PANEL_ROWS ? m->n_rows - first : NB_PANEL_ROWS);
    uint8_t *out = p->codes + panel * p->panel_bytes;
    for (int i = 0; i < rows; i++) {
        const uint8_t *row = nb_mat_row(m, first + i);
        if (needs_decoding(m)) {
            m->fmt->decode_row(m, first + i, (float *)(void *)scratch);
            row = scratch;
        }
        if (p->kind == NB_PANEL_F32) {
            for (int64_t k = 0; k < p->n_cols; k++)
                memcpy(out + 4 * (k * NB_PANEL_ROWS + i), row + 4 * k, 4);
        } else {
            for (int64_t k = 0; k < p->n_cols; k++)
                memcpy(out + 2 * (k * NB_PANEL_ROWS + i), row + 2 * k, 2);
        }
    }
}

/* What is added to a code to store it: so that the lowest is stored as 0. */
static int stored_offset(const nb_panels *p)
{
    return p->kind == NB_PANEL_T4 ? 0 : p->zero_const;
}

/* Row i of a panel of codes, from signed codes. */
static void interleave(const nb_panels *p, uint8_t *panel, int i, const int8_t *code)
{
    if (p->kind == NB_PANEL_U8) {
        uint8_t *out = panel + 4 * i;
        for (int64_t k = 0; k < p->k_pad; k += 4, out += 64) {
            uint32_t four;
            memcpy(&four, code + k, 4);
            four ^= 0x80808080u; /* code + 128, byte by byte */
            memcpy(out, &four, 4);
        }
        return;
    }
    const uint32_t lowest = 0x01010101u * (uint32_t)stored_offset(p);
    uint8_t *out = panel + 4 * i;
    for (int64_t k = 0; k < p->k_pad; k += 8, out += 64) {
        uint32_t a, b;
        memcpy(&a, code + k, 4);
        memcpy(&b, code + k + 4, 4);
        /* code - code_lo lies in 0..15 in every byte, so adding modulo 256 without carries
         * between bytes is what is wanted: split even and odd bytes. */
        const uint32_t even = 0x00ff00ffu;
        a = (((a & even) + (lowest & even)) & even) | (((a & ~even) + (lowest & ~even)) & ~even);
        b = (((b & even) + (lowest & even)) & even) | (((b & ~even) + (lowest & ~even)) & ~even);
        const uint32_t both = a | b << 4;
        memcpy(out, &both, 4);
    }
}

static void pack_codes(const nb_panels *p, const nb_mat *m, int64_t panel, uint8_t *scratch)
{
    const int64_t first = panel * NB_PANEL_ROWS;
    const int rows = (int)(m->n_rows - first < NB_PANEL_ROWS ? m->n_rows - first : NB_PANEL_ROWS);
    const size_t params = (size_t)round_up(p->n_segs, 16);
    const nb_int_row row = {.scale = (float *)(void *)scratch,
                            .min = (float *)(void *)scratch + params,
                            .zero = (int16_t *)(void *)(scratch + 8 * params),
                            .code = (int8_t *)scratch + 10 * params};
    uint8_t *codes = p->codes + panel * p->panel_bytes;
    const int64_t base = panel * p->n_segs * NB_PANEL_ROWS;
    /* Padding columns hold the lowest code, so that the stored byte or nibble is 0. */
    memset(row.code + p->n_cols, -stored_offset(p), (size_t)(p->k_pad - p->n_cols));
    for (int i = 0; i < rows; i++) {
        m->fmt->int_row(m, first + i, &row);
        interleave(p, codes, i, row.code);
        for (int64_t s = 0; s < p->n_segs; s++) {
            const int64_t at = base + s * NB_PANEL_ROWS + i;
            nb_float_put(p->scales, p->scale_type, at, row.scale[s]);
            if (p->zeros != NULL)
                p->zeros[at] = (int16_t)(row.zero[s] + p->zero_const);
            if (p->mins != NULL)
                nb_float_put(p->mins, p->scale_type, at, row.min[s]);
        }
    }
}

static void pack_task(void *context, int64_t chunk, int thread)
{
    const pack_job *job = context;
    uint8_t *scratch =
        job->scratch_bytes > 0 ? job->scratch + (size_t)thread * job->scratch_bytes : NULL;
    if (job->p->n_segs == 0)
        pack_plain(job->p, job->m, chunk, scratch);
    else
        pack_codes(job->p, job->m, chunk, scratch);
}

nb_status nb_panels_pack(nb_panels *p, const nb_mat *m, nb_pool *pool, nb_err *err)
{
    assert(p->n_rows == m->n_rows && p->n_cols == m->n_cols);
    pack_job job = {.p = p, .m = m};
    if (p->n_segs > 0)
        job.scratch_bytes = (size_t)round_up(10 * round_up(p->n_segs, 16) + p->k_pad, 64);
    else if (needs_decoding(m))
        job.scratch_bytes = (size_t)round_up(4 * p->n_cols, 64);
    if (job.scratch_bytes > 0) {
        NB_TRY(nb_alloc((void **)&job.scratch, (size_t)nb_pool_n_threads(pool), job.scratch_bytes,
                        err));
    }
    nb_pool_run(pool, p->n_panels, pack_task, &job);
    nb_free(job.scratch);
    return NB_OK;
}

void nb_panels_row(const nb_panels *p, int64_t r, float *y)
{
    const int64_t panel = r / NB_PANEL_ROWS, i = r % NB_PANEL_ROWS;
    const uint8_t *codes = p->codes + panel * p->panel_bytes;
    if (p->n_segs == 0) {
        const nb_float_type type = p->kind == NB_PANEL_BF16  ? NB_BF16
                                   : p->kind == NB_PANEL_F16 ? NB_F16
                                                             : NB_F32;
        for (int64_t k = 0; k < p->n_cols; k++)
            y[k] = nb_float_get(codes, type, k * NB_PANEL_ROWS + i);
        return;
    }
    for (int64_t seg = 0; seg < p->n_segs; seg++) {
        const int64_t at = (panel * p->n_segs + seg) * NB_PANEL_ROWS + i;
        const float s = nb_float_get(p->scales, p->scale_type, at);
        const float m = p->mins != NULL ? nb_float_get(p->mins, p->scale_type, at) : 0;
        const int z = p->zeros != NULL ? p->zeros[at] : p->zero_const;
        const int64_t end = (seg + 1) * p->seg_len < p->n_cols ? (seg + 1) * p->seg_len : p->n_cols;
        for (int64_t k = seg * p->seg_len; k < end; k++) {
            int u;
            if (p->kind == NB_PANEL_U8) {
                u = codes[k / 4 * 64 + 4 * i + k % 4];
            } else {
                const int byte = codes[k / 8 * 64 + 4 * i + k % 4];
                u = k % 8 < 4 ? byte & 15 : byte >> 4;
                u = p->kind == NB_PANEL_T4 ? p->table[u] : u;
            }
            const float q = (float)(u - z);
            y[k] = p->mins == NULL ? s * q : __builtin_fmaf(s, q, m);
        }
    }
}
